"""Fits the linear latency model to measured turns of this engine, and says where the fit holds.

It differs from ``aegaeon.latency.fit.part_fit``, which is for batches of prompts prefilled together, in what a prefill
is: this engine processes a prompt in chunks, each of which costs ``p0``, so with k chunks

    prefill(n) = k * p0 + p1 * n + p2 * n^2         decode(batch) = d0 + d1 * sum(context) + d2 * batch size

Least squares of relative errors, no coefficient negative (``aegaeon.latency.fit.least_squares``).

Does not know: how anything was measured, files, names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import TypeVar

import numpy as np

from aegaeon.core.profile import LatencyProfile
from aegaeon.latency.fit.least_squares import Matrix, fit_relative, mean_relative_error
from aegaeon.latency.fit.part_fit import MAX_ERROR

MIN_POINTS = 6


@dataclass(frozen=True, slots=True)
class PrefillSample:
    """A prompt of ``tokens`` processed in ``chunks``."""

    tokens: int
    chunks: int
    seconds: float

    @property
    def features(self) -> tuple[float, float, float]:
        return float(self.chunks), float(self.tokens), float(self.tokens**2)


@dataclass(frozen=True, slots=True)
class DecodeSample:
    """A step of ``batch`` requests with ``context_tokens`` in all."""

    batch: int
    context_tokens: int
    seconds: float

    @property
    def features(self) -> tuple[float, float, float]:
        return 1.0, float(self.context_tokens), float(self.batch)


Sample = PrefillSample | DecodeSample
_S = TypeVar("_S", bound=Sample)


@dataclass(frozen=True, slots=True)
class StepPartFit:
    """Coefficients in seconds, mean relative error, and the range (prompt tokens, or batch size) that they hold for."""

    coefficients_s: tuple[float, float, float]
    mean_error: float
    points: int
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class StepFit:
    """Both parts; ``good`` where neither is off by more than ``max_error`` on average."""

    prefill: StepPartFit
    decode: StepPartFit
    max_error: float

    @property
    def profile(self) -> LatencyProfile:
        """The six coefficients."""
        return LatencyProfile(*self.prefill.coefficients_s, *self.decode.coefficients_s)

    @property
    def good(self) -> bool:
        return max(self.prefill.mean_error, self.decode.mean_error) <= self.max_error


def fit_steps(
    prefill: Sequence[PrefillSample], decode: Sequence[DecodeSample], max_error: float = MAX_ERROR
) -> StepFit:
    """Each part over the widest range that is within ``max_error``, short prompts or large batches left out.

    Where no range of at least half of the points is, over all of them: the fit is not ``good`` then. Raises
    ``ValueError`` with fewer than ``MIN_POINTS`` points.
    """
    if min(len(prefill), len(decode)) < MIN_POINTS:
        raise ValueError(f"needs {MIN_POINTS} points of each part, got {len(prefill)} and {len(decode)}")
    lengths = sorted(prefill, key=attrgetter("tokens"))
    longer = [lengths[start:] for start in range(len(lengths) // 2 + 1)]
    sizes = sorted({sample.batch for sample in decode}, reverse=True)
    smaller = [[sample for sample in decode if sample.batch <= size] for size in sizes]
    return StepFit(
        _widest([_fit(samples, samples[0].tokens, samples[-1].tokens) for samples in _enough(longer)], max_error),
        _widest([_fit(samples, 1, max(sample.batch for sample in samples)) for samples in _enough(smaller)], max_error),
        max_error,
    )


def _enough(ranges: Sequence[Sequence[_S]]) -> list[Sequence[_S]]:
    """Ranges with half of the points of the first, at least."""
    least = max(MIN_POINTS, len(ranges[0]) // 2)
    return [samples for samples in ranges if len(samples) >= least]


def _widest(fits: Sequence[StepPartFit], max_error: float) -> StepPartFit:
    """``fits`` of ever narrower ranges."""
    return next((fit for fit in fits if fit.mean_error <= max_error), fits[0])


def _fit(samples: Sequence[Sample], low: int, high: int) -> StepPartFit:
    features: Matrix = np.array([sample.features for sample in samples], dtype=np.float64)
    seconds = np.array([sample.seconds for sample in samples], dtype=np.float64)
    found = fit_relative(features, seconds, np.zeros(3))
    first, second, third = map(float, found)
    return StepPartFit((first, second, third), mean_relative_error(features, seconds, found), len(samples), low, high)
