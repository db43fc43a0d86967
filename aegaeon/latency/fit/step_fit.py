"""Fits a profile to measured turns of this engine.

It differs from ``measured_fit``, which is for batches of prompts prefilled together, in what a prefill is: this engine
processes a prompt in chunks, each of which costs ``p0``, so with k chunks

    prefill(n) = k * p0 + p1 * n + p2 * n^2         decode(batch) = d0 + d1 * sum(context) + d2 * batch size
"""

from __future__ import annotations

from collections.abc import Sequence

from aegaeon.latency.fit.part_fit import MAX_ERROR, Fit, Range, Sample, fit_widest, smaller_batches

MIN_POINTS = 6


def fit_steps(prefill: Sequence[Sample], decode: Sequence[Sample], max_error: float = MAX_ERROR) -> Fit:
    """Each part over the widest range that is within ``max_error``, short prompts or large batches left out.

    Where no range of at least half of the points is, the fit is off by more. Raises ``ValueError`` with fewer than
    ``MIN_POINTS`` points.
    """
    return Fit(
        fit_widest(prefill, _longer_prompts(prefill), _enough(prefill), max_error),
        fit_widest(decode, smaller_batches(decode), _enough(decode), max_error),
    )


def _longer_prompts(samples: Sequence[Sample]) -> list[Range]:
    sizes = sorted({sample.size for sample in samples})
    return [(size, sizes[-1]) for size in sizes]


def _enough(samples: Sequence[Sample]) -> int:
    return max(MIN_POINTS, len(samples) // 2)
