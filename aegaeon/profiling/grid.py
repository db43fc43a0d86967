"""Which points to measure: lengths and batches in steps that are even in ratio, as far as limits allow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from aegaeon.profiling.point import Copied, CopyPoint, DecodePoint, HandOverPoint, Point, PrefillPoint, SwitchPoint

DECODE_STEPS = 8
"""New tokens of a decode measurement."""

_LEAST_PROMPT = 16
_LEAST_QUICK_CONTEXT, _LEAST_QUICK_BATCH = 512, 32


@dataclass(frozen=True, slots=True)
class GridLimits:
    """``context_tokens``: the longest prompt or context; ``kv_tokens``: all contexts of a batch together."""

    context_tokens: int
    kv_tokens: int
    batch: int


def make_grid(limits: GridLimits, *, quick: bool) -> tuple[Point, ...]:
    """Points of one model; ``quick`` has about a third of them, where contexts are long enough to leave some out."""
    quick = quick and limits.context_tokens >= _LEAST_QUICK_CONTEXT
    return (
        *(PrefillPoint(tokens) for tokens in _prompts(limits, quick)),
        *_decodes(limits, quick),
        HandOverPoint(),
        SwitchPoint(cold=False),
        SwitchPoint(cold=True),
        *map(CopyPoint, Copied),
    )


def _prompts(limits: GridLimits, quick: bool) -> list[int]:
    """Powers of two and, unless quick, a length half way between."""
    doublings = _doublings(_LEAST_PROMPT, limits.context_tokens - 1)
    halves = () if quick else (3 * tokens // 2 for tokens in doublings)
    return sorted({*doublings, *(tokens for tokens in halves if tokens < limits.context_tokens)})


def _decodes(limits: GridLimits, quick: bool) -> Iterator[DecodePoint]:
    most = limits.context_tokens - DECODE_STEPS
    contexts = _doublings(_LEAST_PROMPT, most)[:: -3 if quick else -2]  # from the longest down
    for context in sorted(contexts):
        for batch in _doublings(1, limits.batch)[:: 2 if quick and limits.batch >= _LEAST_QUICK_BATCH else 1]:
            if batch * context <= limits.kv_tokens:
                yield DecodePoint(batch, context)


def _doublings(low: int, high: int) -> list[int]:
    """``low``, twice that, ..., up to ``high``, which is the last one unless it is near the one before."""
    values = [low << power for power in range(64) if low << power <= high]
    if values and high >= values[-1] * 5 // 4:
        values.append(high)
    return values
