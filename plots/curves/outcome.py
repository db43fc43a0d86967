"""How one system did at one load: what a figure needs to know of it, whether it was measured or simulated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from aegaeon.core.slo import Slo
from aegaeon.core.timeline import LatencyParts
from aegaeon.metrics import Metric, TokenGaps
from aegaeon.run_header import Load
from plots.curves.curve import Source


@dataclass(frozen=True, slots=True)
class Distribution:
    """A cumulative distribution: ``shares`` [n] of all values are at most ``values`` [n]; both ascending."""

    values: NDArray[np.float64]
    shares: NDArray[np.float64]

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Distribution:
        """The empirical distribution of a sample."""
        ordered = np.sort(values)
        return cls(ordered, np.arange(1, len(ordered) + 1) / len(ordered))

    @property
    def mean(self) -> float:
        """The area left of the curve, which is a straight line between its points."""
        return float(np.trapezoid(self.values, self.shares)) + float(self.values[0] * self.shares[0])

    def quantile(self, share: float) -> float:
        """The value that ``share`` of all values do not exceed, interpolated."""
        return float(np.interp(share, self.shares, self.values))


@dataclass(frozen=True, slots=True)
class SlabUse:
    """Bytes of the host KV cache's slabs that one block shape has, and those of them that blocks use; over time."""

    assigned_bytes: float
    used_bytes: float

    @property
    def fragmented_share(self) -> float:
        """Share of the assigned bytes that no block uses."""
        return 1.0 - self.used_bytes / self.assigned_bytes if self.assigned_bytes else 0.0


@dataclass(frozen=True, slots=True)
class Detail:
    """Where the time went; None or empty where nobody recorded it."""

    parts: LatencyParts | None = None  # means over requests
    kv_sync_s: Distribution | None = None  # of a request: control + block overhead
    switch_s: Mapping[str, Distribution] = field(default_factory=dict)  # by model
    slabs: Mapping[str, SlabUse] = field(default_factory=dict)  # by block shape


@dataclass(frozen=True, slots=True)
class Outcome:
    """One system at one load. ``slo`` is what it was served for, ``scores`` what it reached by it, where known.

    ``gaps`` and ``detail`` read their file when they are asked for, once. ``refused`` says why the system could not
    take the load at all; then there is nothing else. ``bound_load``: the least work that the load is, over what the
    devices can do in time, where the record has it.
    """

    policy: str
    source: Source
    load: Load
    slo: Slo
    gaps: Callable[[], TokenGaps]
    detail: Callable[[], Detail]
    scores: Mapping[Metric, float] = field(default_factory=dict)
    bound_load: float | None = None
    refused: str = ""

    def score(self, metric: Metric, slo: Slo) -> float:
        """The metric averaged over requests, by targets that need not be those it was served for."""
        known = self.scores.get(metric) if slo == self.slo else None
        return known if known is not None else self.gaps().mean(metric, slo)
