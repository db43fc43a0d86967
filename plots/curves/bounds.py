"""Numbers known only between two bounds, and their ratios: how far a system goes when its curve never crosses."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from aegaeon.crossing import Crossing, CrossingKind


@dataclass(frozen=True, slots=True)
class Bounds:
    """``low <= number <= high``; ``high`` may be infinite."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high:
            raise ValueError(f"not bounds: {self.low} to {self.high}")

    @classmethod
    def of(cls, crossing: Crossing, known_end: bool = False) -> Bounds:
        """Where the curve crosses. ``known_end``: the system takes no more than its last point, whatever the curve."""
        match crossing.kind:
            case CrossingKind.NEVER:
                return cls(0.0, crossing.x)
            case CrossingKind.BEYOND if not known_end:
                return cls(crossing.x, inf)
        return cls(crossing.x, crossing.x)

    def over(self, other: Bounds) -> Bounds:
        """The ratio of the two."""
        low = self.low / other.high if other.high else inf
        return Bounds(low, self.high / other.low if other.low else inf)

    def text(self, digits: int) -> str:
        """``2.1``, ``> 2.1``, ``< 2.1``, ``1.2 - 2.1``, or ``-`` if nothing is known."""
        low, high = f"{self.low:.{digits}f}", f"{self.high:.{digits}f}"
        if self.low == self.high:
            return low
        if self.high == inf:
            return f"> {low}" if self.low > 0 else "-"
        return f"< {high}" if self.low == 0 else f"{low} - {high}"
