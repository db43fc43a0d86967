"""Linear least squares of relative errors with lower bounds on the coefficients."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]


def fit_relative(features: Matrix, target: Vector, lower: Vector) -> Vector:
    """Coefficients x >= ``lower`` [k] that minimise sum((features @ x / target - 1)^2).

    ``features`` [n, k] and ``target`` [n] (all positive). Exact: of the 2^k ways to hold coefficients at their bound
    it takes the best feasible one (k is at most six here), so there is no start value and no tolerance.
    """
    rows = features / target[:, None]
    scale = np.maximum(np.abs(rows).max(axis=0), np.finfo(float).tiny)
    rows = rows / scale
    residual = 1.0 - rows @ (lower * scale)
    candidates = (_solve(rows, residual, free) for free in _subsets(rows.shape[1]))
    feasible = (x for x in candidates if (x >= 0).all())
    best = min(feasible, key=lambda x: float(((rows @ x - residual) ** 2).sum()))
    return np.asarray(lower + best / scale)


def mean_relative_error(features: Matrix, target: Vector, coefficients: Vector) -> float:
    """Mean of |predicted / target - 1|."""
    return float(np.abs(features @ coefficients / target - 1.0).mean())


def _subsets(size: int) -> Iterator[list[int]]:
    return (list(chosen) for count in range(size + 1) for chosen in combinations(range(size), count))


def _solve(rows: Matrix, residual: Vector, free: list[int]) -> Vector:
    x = np.zeros(rows.shape[1])
    if free:
        x[free] = np.linalg.lstsq(rows[:, free], residual, rcond=None)[0]
    return x
