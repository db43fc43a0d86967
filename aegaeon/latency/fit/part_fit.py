"""Fits the linear latency model (Vidur, DistServe) to measurements, and says where the fit holds.

Serving engines process at most so many prompt tokens at once. Beyond this *cap* the measured prefill is only the first
chunk, and the rest is in the decode steps: those points say nothing about either and are left out.

Does not know: files, names of models and devices, where the measurements come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from operator import attrgetter

import numpy as np

from aegaeon.core.profile import LatencyProfile
from aegaeon.latency.estimate.errors import LatencyError
from aegaeon.latency.fit.least_squares import Matrix, Vector, fit_relative, mean_relative_error
from aegaeon.latency.fit.measurement import Measurement

MAX_ERROR = 0.10
MIN_POINTS = 12
# From one doubling of the prompt tokens to the next, measured over extrapolated prefill falls by a third at the cap
# (the plateau) and by a sixth at most anywhere else, over all published sets.
CAP_DROP = 0.75


@dataclass(frozen=True, slots=True)
class PartFit:
    """Prefill or decode: three coefficients in seconds, the mean relative error, and the points and range behind it.

    ``low`` .. ``high``: batched tokens of a prefill, requests of a decode batch.
    """

    coefficients_s: tuple[float, float, float]
    mean_error: float
    points: tuple[Measurement, ...]
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Fit:
    """A fitted profile. ``batched_token_cap`` is None where the measurements show none.

    Of the points under the cap ``sound`` can be used; ``dropped`` are faster than possible.
    """

    prefill: PartFit
    decode: PartFit
    batched_token_cap: int | None
    sound: int
    dropped: int
    max_batched_tokens: int
    max_input_tokens: int

    @property
    def profile(self) -> LatencyProfile:
        """The six coefficients."""
        return LatencyProfile(*self.prefill.coefficients_s, *self.decode.coefficients_s)


def fit(measurements: Sequence[Measurement], fastest: LatencyProfile, max_error: float = MAX_ERROR) -> Fit:
    """Fit both parts by least squares of relative errors.

    ``fastest`` is what the device's peak rates allow. Its coefficients are the lower bounds of ours (noise can make a
    slope negative that cannot be), and a step or a prefill below it cannot have been measured: it is dropped. A part
    whose mean error is above ``max_error`` is fitted to the widest range that reaches it. Raises ``LatencyError`` where
    none with at least ``MIN_POINTS`` points does.
    """
    possible = [point for point in measurements if point.decode_step_s >= _fastest_step_s(point, fastest)]
    cap = find_cap(possible)
    uncut = [point for point in possible if cap is None or point.batched_tokens <= cap]
    sound = [point for point in uncut if point.prefill_s >= _fastest_prefill_s(point, fastest)]
    if len(sound) < MIN_POINTS:
        raise LatencyError(
            f"only {len(sound)} of {len(measurements)} points can be used; measure at least {MIN_POINTS}"
        )
    return Fit(
        prefill=_fit_prefill(sound, fastest, max_error),
        decode=_fit_decode(sound, fastest, max_error),
        batched_token_cap=cap,
        sound=len(sound),
        dropped=len(measurements) - len(possible) + len(uncut) - len(sound),
        max_batched_tokens=max(point.batched_tokens for point in sound),
        max_input_tokens=max(point.input_tokens for point in sound),
    )


def find_cap(points: Sequence[Measurement]) -> int | None:
    """The most prompt tokens (a power of two) that were processed together, or None if the points show no limit.

    Each candidate's points are extrapolated to twice as many tokens. Where the next window falls behind by
    ``CAP_DROP`` against the one before, prefill has stopped growing.
    """
    most = max((point.batched_tokens for point in points), default=0)
    before: float | None = None
    cap = 256
    while cap < most:
        ratio = _measured_over_extrapolated(points, cap)
        if ratio is not None and before is not None and ratio < CAP_DROP * before:
            return cap
        before = ratio if ratio is not None else before
        cap *= 2
    return None


def _measured_over_extrapolated(points: Sequence[Measurement], cap: int) -> float | None:
    """Median over the points with more than ``cap`` and up to twice as many tokens."""
    under = [point for point in points if point.batched_tokens <= cap]
    beyond = [point for point in points if cap < point.batched_tokens <= 2 * cap]
    if len(under) < 3 or not beyond:
        return None
    coefficients = fit_relative(prefill_features(under), _prefill_s(under), np.zeros(3))
    return float(np.median(_prefill_s(beyond) / (prefill_features(beyond) @ coefficients)))


def _fit_prefill(points: Sequence[Measurement], fastest: LatencyProfile, max_error: float) -> PartFit:
    """Short prompts cost what reading the weights costs, long ones what multiplying costs: a line misses the bend."""
    lower = np.array([0.0, fastest.p1_s, fastest.p2_s])
    tokens = attrgetter("batched_tokens")
    least, most = min(map(tokens, points)), max(map(tokens, points))
    ranges = product(_doublings(least, most), (most // 2**k for k in range(4)))

    def fit_range(low: int, high: int) -> PartFit:
        chosen = [point for point in points if low <= tokens(point) <= high]
        return _fit_part(chosen, prefill_features(chosen), _prefill_s(chosen), lower, (low, high))

    return _widest("prefill", ranges, fit_range, tokens, points, max_error)


def _fit_decode(points: Sequence[Measurement], fastest: LatencyProfile, max_error: float) -> PartFit:
    """Kernels change with the batch size; a device with few FLOPs for its memory leaves the line at large batches."""
    lower = np.array([fastest.d0_s, fastest.d1_s, fastest.d2_s])
    batch = attrgetter("batch_size")
    least = min(map(batch, points))
    ranges = [(least, high) for high in sorted(set(map(batch, points)))]

    def fit_range(low: int, high: int) -> PartFit:
        chosen = [point for point in points if low <= batch(point) <= high]
        return _fit_part(chosen, decode_features(chosen), _decode_step_s(chosen), lower, (low, high))

    return _widest("decode", ranges, fit_range, batch, points, max_error)


def _widest(
    part: str,
    ranges: Iterable[tuple[int, int]],
    fit_range: Callable[[int, int], PartFit],
    key: Callable[[Measurement], int],
    points: Sequence[Measurement],
    max_error: float,
) -> PartFit:
    """The fit over the range with the most points whose error is small enough."""
    counted = [(sum(low <= key(point) <= high for point in points), low, high) for low, high in ranges]
    best = None
    for count, low, high in sorted(counted, reverse=True):
        if count < MIN_POINTS:
            break
        found = fit_range(low, high)
        if found.mean_error <= max_error:
            return found
        best = found if best is None or found.mean_error < best.mean_error else best
    reached = "too few points" if best is None else f"the best is off by {best.mean_error:.1%}"
    raise LatencyError(f"no range of at least {MIN_POINTS} points fits {part} within {max_error:.0%}: {reached}")


def _fit_part(
    points: Sequence[Measurement], features: Matrix, target_s: Vector, lower: Vector, span: tuple[int, int]
) -> PartFit:
    coefficients = fit_relative(features, target_s, lower)
    error = mean_relative_error(features, target_s, coefficients)
    first, second, third = map(float, coefficients)
    return PartFit((first, second, third), error, tuple(points), *span)


def prefill_features(points: Sequence[Measurement]) -> Matrix:
    """[n, 3]: 1, sum(len), sum(len^2)."""
    return np.array([(1.0, p.batched_tokens, p.batch_size * p.input_tokens**2) for p in points], dtype=np.float64)


def decode_features(points: Sequence[Measurement]) -> Matrix:
    """[n, 3]: 1, sum(context), batch size."""
    return np.array([(1.0, p.batched_tokens, p.batch_size) for p in points], dtype=np.float64)


def _prefill_s(points: Sequence[Measurement]) -> Vector:
    return np.array([point.prefill_s for point in points])


def _decode_step_s(points: Sequence[Measurement]) -> Vector:
    return np.array([point.decode_step_s for point in points])


def _fastest_step_s(point: Measurement, fastest: LatencyProfile) -> float:
    return fastest.decode_step_s(point.batched_tokens, point.batch_size)


def _fastest_prefill_s(point: Measurement, fastest: LatencyProfile) -> float:
    return fastest.prefill_s([point.input_tokens] * point.batch_size)


def _doublings(least: int, most: int) -> list[int]:
    return [least * 2**k for k in range(5) if least * 2**k < most]
