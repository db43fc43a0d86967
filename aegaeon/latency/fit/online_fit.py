"""Corrects the latency estimate of one model, part by part, from turns that were timed.

Recursive least squares (Ljung, "System Identification", 11.2) on factors of the estimate's coefficients: a turn with
sums ``f`` that took ``s`` seconds is the equation ``sum_j theta_j * c_j * f_j / s = 1``, so errors are relative and a
factor of 1 is the estimate. Factors may drift, so old turns are forgotten. Robust: an innovation is cut off at a few
standard deviations (Huber): a turn that was disturbed hardly counts, and one that was too slow never more than 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

_DRIFT_VARIANCE = 0.01**2  # of a factor, from turn to turn
_NOISE_VARIANCE = 0.1**2  # of a turn's time, relative
_LEAST_FACTOR, _MOST_FACTOR = 0.02, 50.0
_CUT = 3.0  # standard deviations of an innovation


class OnlineFit:
    """Three coefficients in seconds, each positive, and their factors so far."""

    def __init__(self, estimate_s: Sequence[float]) -> None:
        if len(estimate_s) != 3 or min(estimate_s) <= 0:
            raise ValueError(f"an estimate has three positive coefficients, got {estimate_s}")
        self._estimate_s = tuple(estimate_s)
        self._factors = [1.0] * 3
        self._covariance = [[float(row == column) for column in range(3)] for row in range(3)]

    @property
    def coefficients_s(self) -> tuple[float, float, float]:
        """The estimate, corrected."""
        first, second, third = (c * factor for c, factor in zip(self._estimate_s, self._factors, strict=True))
        return first, second, third

    def observe(self, sums: Sequence[float], seconds: float) -> None:
        """Steps with these sums (one for each coefficient) took ``seconds`` in all; both positive."""
        row = [c * value / seconds for c, value in zip(self._estimate_s, sums, strict=True)]
        spread = [_dot(line, row) for line in self._covariance]
        variance = _NOISE_VARIANCE + _dot(spread, row)
        most = _CUT * math.sqrt(variance)
        innovation = min(most, max(-most, 1.0 - _dot(self._factors, row)))
        self._factors = [
            min(_MOST_FACTOR, max(_LEAST_FACTOR, factor + each / variance * innovation))
            for factor, each in zip(self._factors, spread, strict=True)
        ]
        self._narrow(spread, variance)

    def _narrow(self, spread: Sequence[float], variance: float) -> None:
        """What is left of the covariance after an equation, and a little more for what may have changed since."""
        self._covariance = [
            [
                value - spread[i] * spread[j] / variance + (_DRIFT_VARIANCE if i == j and value < 1.0 else 0.0)
                for j, value in enumerate(line)
            ]
            for i, line in enumerate(self._covariance)
        ]


def _dot(left: Sequence[float], right: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))
