"""Fits a profile to published measurements of batches, and leaves out of them what says nothing.

Serving engines process at most so many prompt tokens at once. Beyond this *cap* the measured prefill is only the first
chunk, and the rest is in the decode steps: those points say nothing about either and are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from aegaeon.core.profile import LatencyProfile
from aegaeon.latency.estimate.errors import LatencyError
from aegaeon.latency.fit.least_squares import Vector, fit_relative
from aegaeon.latency.fit.measurement import Measurement
from aegaeon.latency.fit.part_fit import (
    MAX_ERROR,
    Fit,
    PartFit,
    Range,
    Sample,
    done_of,
    fit_widest,
    seconds_of,
    smaller_batches,
)

MIN_POINTS = 12
# From one doubling of the prompt tokens to the next, measured over extrapolated prefill falls by a third at the cap
# (the plateau) and by a sixth at most anywhere else, over all published sets.
CAP_DROP = 0.75


@dataclass(frozen=True, slots=True)
class MeasuredFit(Fit):
    """A fitted profile. ``batched_token_cap`` is None where the measurements show none.

    Of the points under the cap ``sound`` can be used; ``dropped`` are faster than possible.
    """

    batched_token_cap: int | None
    sound: int
    dropped: int
    max_input_tokens: int


def fit(measurements: Sequence[Measurement], fastest: LatencyProfile, max_error: float = MAX_ERROR) -> MeasuredFit:
    """Fit both parts by least squares of relative errors.

    ``fastest`` is what the device's peak rates allow. Its coefficients are the lower bounds of ours (noise can make a
    slope negative that cannot be), and a step or a prefill below it cannot have been measured: it is dropped. Raises
    ``LatencyError`` where no range of at least ``MIN_POINTS`` points is within ``max_error``.
    """
    possible = [point for point in measurements if point.decode_step_s >= _fastest_step_s(point, fastest)]
    cap = find_cap(possible)
    uncut = [point for point in possible if cap is None or point.batched_tokens <= cap]
    sound = [point for point in uncut if point.prefill_s >= _fastest_prefill_s(point, fastest)]
    if len(sound) < MIN_POINTS:
        raise LatencyError(
            f"only {len(sound)} of {len(measurements)} points can be used; measure at least {MIN_POINTS}"
        )
    prefill, decode = [point.prefill for point in sound], [point.decode for point in sound]
    # A prefill may read weights for nothing: its multiplications hide that.
    prefill_lower = np.array([0.0, fastest.p1_s, fastest.p2_s])
    decode_lower = np.array([fastest.d0_s, fastest.d1_s, fastest.d2_s])
    return MeasuredFit(
        prefill=_fit_part("prefill", prefill, _prompt_ranges(prefill), prefill_lower, max_error),
        decode=_fit_part("decode", decode, smaller_batches(decode), decode_lower, max_error),
        batched_token_cap=cap,
        sound=len(sound),
        dropped=len(measurements) - len(possible) + len(uncut) - len(sound),
        max_input_tokens=max(point.input_tokens for point in sound),
    )


def find_cap(points: Sequence[Measurement]) -> int | None:
    """The most prompt tokens (a power of two) that were processed together, or None if the points show no limit.

    Each candidate's points are extrapolated to twice as many tokens. Where the next window falls behind by
    ``CAP_DROP`` against the one before, prefill has stopped growing.
    """
    samples = [point.prefill for point in points]
    most = max((sample.size for sample in samples), default=0)
    before: float | None = None
    cap = 256
    while cap < most:
        ratio = _measured_over_extrapolated(samples, cap)
        if ratio is not None and before is not None and ratio < CAP_DROP * before:
            return cap
        before = ratio if ratio is not None else before
        cap *= 2
    return None


def _measured_over_extrapolated(samples: Sequence[Sample], cap: int) -> float | None:
    """Median over the samples with more than ``cap`` and up to twice as many tokens."""
    under = [sample for sample in samples if sample.size <= cap]
    beyond = [sample for sample in samples if cap < sample.size <= 2 * cap]
    if len(under) < 3 or not beyond:
        return None
    coefficients = fit_relative(done_of(under), seconds_of(under), np.zeros(3))
    return float(np.median(seconds_of(beyond) / (done_of(beyond) @ coefficients)))


def _fit_part(
    name: str, samples: Sequence[Sample], ranges: Sequence[Range], lower: Vector, max_error: float
) -> PartFit:
    refusal = f"no range of at least {MIN_POINTS} points fits {name} within {max_error:.0%}"
    try:
        found = fit_widest(samples, ranges, MIN_POINTS, max_error, lower)
    except ValueError:
        raise LatencyError(f"{refusal}: too few points") from None
    if found.mean_error > max_error:
        raise LatencyError(f"{refusal}: the best is off by {found.mean_error:.1%}")
    return found


def _prompt_ranges(samples: Sequence[Sample]) -> list[Range]:
    """Short prompts cost what reading the weights costs, long ones what multiplying costs: a line misses the bend."""
    sizes = [sample.size for sample in samples]
    least, most = min(sizes), max(sizes)
    lows = [low for k in range(5) if (low := least * 2**k) < most]
    return list(product(lows, (most // 2**k for k in range(4))))


def _fastest_step_s(point: Measurement, fastest: LatencyProfile) -> float:
    return fastest.decode_step_s(point.batched_tokens, point.batch_size)


def _fastest_prefill_s(point: Measurement, fastest: LatencyProfile) -> float:
    return fastest.prefill_s([point.input_tokens] * point.batch_size)
