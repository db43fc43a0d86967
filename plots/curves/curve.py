"""A line of an attainment figure: a system under growing load, and who says so."""

from __future__ import annotations

from dataclasses import dataclass

from aegaeon.crossing import Crossing, crossing
from aegaeon.run_header import Origin

UNKNOWN_DEVICE = "device not stated"


@dataclass(frozen=True, slots=True)
class Source:
    """Where numbers come from; ``device`` says how many of what, ``16 x H100``."""

    origin: Origin
    device: str

    def __str__(self) -> str:
        return f"{self.origin}, {self.device}"


@dataclass(frozen=True, slots=True)
class Curve:
    """``points`` (x, share), ascending; ``end`` says why there are none beyond the last one, if that is known."""

    label: str
    source: Source
    points: tuple[tuple[float, float], ...]
    end: str = ""

    def __post_init__(self) -> None:
        if not self.points or list(self.points) != sorted(self.points):
            raise ValueError(f"{self.label}: a curve needs points in ascending order")

    @property
    def crossing(self) -> Crossing:
        """Where it falls below 90 %."""
        return crossing(self.points)
