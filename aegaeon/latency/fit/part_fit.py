"""Fits one part of the latency model, prefill or decode, and says where the fit holds.

A part is ``seconds = sum of three coefficients times what was done``: a line misses the bend from short prompts to long
ones and the kernels that change with the batch, so it is fitted to the widest range of sizes that it describes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from aegaeon.core.profile import LatencyProfile
from aegaeon.latency.fit.least_squares import Matrix, Vector, fit_relative, mean_relative_error

MAX_ERROR = 0.10

Range = tuple[int, int]
"""The least and the largest size of what is fitted, both included."""


@dataclass(frozen=True, slots=True)
class Sample:
    """``seconds`` of a prefill or a step that did ``done``: what the three coefficients are multiplied by.

    ``size``: what ranges are told in, prompt tokens processed together or requests of a decode batch.
    """

    done: tuple[float, float, float]
    seconds: float
    size: int


@dataclass(frozen=True, slots=True)
class PartFit:
    """Three coefficients in seconds, the mean relative error, and the samples and range of sizes behind it."""

    coefficients_s: tuple[float, float, float]
    mean_error: float
    samples: tuple[Sample, ...]
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Fit:
    """Both parts of a profile."""

    prefill: PartFit
    decode: PartFit

    @property
    def profile(self) -> LatencyProfile:
        """The six coefficients."""
        return LatencyProfile(*self.prefill.coefficients_s, *self.decode.coefficients_s)

    @property
    def worst_error(self) -> float:
        """The larger of the parts' mean errors."""
        return max(self.prefill.mean_error, self.decode.mean_error)


def fit_widest(
    samples: Sequence[Sample],
    ranges: Iterable[Range],
    least_samples: int,
    max_error: float,
    lower: Vector | None = None,
) -> PartFit:
    """The fit over the range with the most samples whose mean error is at most ``max_error``.

    Where there is none, the one with the least error of those with ``least_samples``. ``lower`` (default 0) bounds the
    coefficients: noise can make a slope smaller than it can be. Raises ``ValueError`` where no range has enough.
    """
    counted = [(sum(low <= each.size <= high for each in samples), low, high) for low, high in ranges]
    best = None
    for count, low, high in sorted(counted, reverse=True):
        if count < least_samples:
            break
        found = _fit_range(samples, low, high, lower)
        if found.mean_error <= max_error:
            return found
        best = found if best is None or found.mean_error < best.mean_error else best
    if best is None:
        raise ValueError(f"needs {least_samples} points in a range, got {len(samples)} in all")
    return best


def smaller_batches(samples: Sequence[Sample]) -> list[Range]:
    """Ranges of a decode part: kernels change with the batch size, and large batches may leave the line."""
    sizes = sorted({sample.size for sample in samples})
    return [(sizes[0], size) for size in sizes]


def done_of(samples: Sequence[Sample]) -> Matrix:
    """[n, 3]: what the coefficients are multiplied by."""
    return np.array([sample.done for sample in samples], dtype=np.float64)


def seconds_of(samples: Sequence[Sample]) -> Vector:
    """[n] measured."""
    return np.array([sample.seconds for sample in samples], dtype=np.float64)


def _fit_range(samples: Sequence[Sample], low: int, high: int, lower: Vector | None) -> PartFit:
    chosen = tuple(sample for sample in samples if low <= sample.size <= high)
    done, seconds = done_of(chosen), seconds_of(chosen)
    found = fit_relative(done, seconds, np.zeros(3) if lower is None else lower)
    first, second, third = map(float, found)
    return PartFit((first, second, third), mean_relative_error(done, seconds, found), chosen, low, high)
