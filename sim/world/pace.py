"""How fast an instance computes, and how long its steps take then."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LEAST_STEP_S = 1e-4
"""A fitted profile may promise less than nothing far from its data; no step is faster than this."""


class Pace(NamedTuple):
    """``speed``: of what it would be alone on its device. ``quantum_s``: steps take whole multiples, rounded down."""

    speed: float = 1.0
    quantum_s: float | None = None

    def step_s(self, alone_s: float) -> float:
        """A step that would take so long alone on the device."""
        seconds = alone_s / self.speed
        if self.quantum_s is not None:
            seconds = seconds // self.quantum_s * self.quantum_s
        return max(LEAST_STEP_S / self.speed, seconds)

    def steps_s(self, first_s: float, slope_s: float, ramp: NDArray[np.float64]) -> NDArray[np.float64]:
        """Steps of ``first_s + slope_s * ramp`` alone on the device."""
        first_s, slope_s, least_s = first_s / self.speed, slope_s / self.speed, LEAST_STEP_S / self.speed
        durations_s = ramp * slope_s
        durations_s += first_s
        if self.quantum_s is not None:
            durations_s = durations_s // self.quantum_s * self.quantum_s
        if slope_s < 0.0 or first_s < least_s or self.quantum_s is not None:
            np.maximum(durations_s, least_s, out=durations_s)
        return durations_s
