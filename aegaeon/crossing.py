"""Where a curve falls through a level: up to which load a system keeps its promise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

LEVEL = 0.9


class CrossingKind(StrEnum):
    """How a curve meets the level."""

    CROSSES = "crosses"  # between two points
    NEVER = "never"  # below the level from its first point on
    BEYOND = "beyond"  # still above at its last point


@dataclass(frozen=True, slots=True)
class Crossing:
    """``x``: where the curve falls through the level, or the first (never) or last (beyond) x there is."""

    kind: CrossingKind
    x: float

    @property
    def lower_bound(self) -> float | None:
        """The system holds the level at least up to here; None if it never does."""
        return None if self.kind is CrossingKind.NEVER else self.x

    def text(self, digits: int = 0) -> str:
        """``74``, ``> 80`` or ``never``, as it is written on a figure."""
        if self.kind is CrossingKind.NEVER:
            return "never"
        return f"> {self.x:g}" if self.kind is CrossingKind.BEYOND else f"{self.x:.{digits}f}"


def crossing(points: Sequence[tuple[float, float]], level: float = LEVEL) -> Crossing:
    """Where the curve through ``points`` (x, y) first falls below ``level``, interpolated between its neighbours.

    A curve that comes back later stays counted from its first fall: beyond it the promise is not kept throughout.
    """
    if not points:
        raise ValueError("a curve needs at least one point")
    ordered = sorted(points)
    if ordered[0][1] < level:
        return Crossing(CrossingKind.NEVER, ordered[0][0])
    for (left, above), (right, below) in pairwise(ordered):
        if below < level:
            return Crossing(CrossingKind.CROSSES, left + (above - level) / (above - below) * (right - left))
    return Crossing(CrossingKind.BEYOND, ordered[-1][0])


def bound_crossing(points: Sequence[tuple[float, float]]) -> Crossing:
    """Where the load of the bound, ``points`` (x, load), first exceeds 1: what is beyond cannot be in time."""
    return crossing([(x, -load) for x, load in points], level=-1.0)
