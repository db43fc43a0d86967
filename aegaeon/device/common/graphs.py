"""Recorded work that a device repeats with one call: CUDA graphs, as the engine sees them.

A graph repeats the same kernels on the same addresses; what lies there may have changed. So inputs are written into
tensors that were there at capture, and outputs are read from those that the capture returned.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor


class Graph(Protocol):
    """Captured work."""

    @property
    def output(self) -> Tensor:
        """What it computes; overwritten by each replay."""
        ...

    @property
    def size_bytes(self) -> int:
        """Device memory that its capture took."""
        ...

    def replay(self) -> None:
        """Do the work again, on the compute stream."""
        ...


class GraphCapture(Protocol):
    """Makes graphs that share one pool of memory, so that only one of them runs at a time."""

    def capture(self, work: Callable[[], Tensor]) -> Graph:
        """Record ``work`` without doing it. It must have run once before, must not look at values, nor allocate what
        outlives it. Raises ``RuntimeError`` (torch's own) where it does."""
        ...

    def measure_s(self, work: Callable[[], object]) -> float:
        """Seconds that the device takes for ``work``: the best of a few."""
        ...
