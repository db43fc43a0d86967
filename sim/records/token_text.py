"""Requests' token times as the artifact writes them: ``[ttft_ms, gap_ms, ...]`` in JSON, ``[-1]`` if dropped.

Times are rounded to 0.01 ms before gaps are taken, so errors do not add up. A sweep writes 10^8 numbers: they are put
together from tables of four characters, whose blanks are then taken out.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from aegaeon.metrics import TokenBatch

DROPPED_TEXT = "[-1]"
_TICKS_PER_S = 100_000
_TICKS_PER_MS = 100
_GROUP = 10_000  # four digits

Words = NDArray[np.uint32]
"""Four characters each; zero bytes are blanks."""


def _words(texts: list[str]) -> Words:
    return np.array(texts, dtype="S4").view(np.uint32)


_FRACTION = _words([f".{ticks:02d}," for ticks in range(_TICKS_PER_MS)])
_LAST_FRACTION = _words([f".{ticks:02d}\n" for ticks in range(_TICKS_PER_MS)])
_DIGITS = _words([f"{group}" for group in range(_GROUP)] + [f"{group:04d}" for group in range(_GROUP)])


def gaps_texts(batch: TokenBatch) -> list[str]:
    """One text for each request; their elapsed times must not fall."""
    ticks = np.rint(batch.elapsed_s * _TICKS_PER_S).astype(np.int64)
    gaps = np.diff(ticks, prepend=0)
    gaps[batch.firsts] = ticks[batch.firsts]
    milliseconds, fractions = np.divmod(gaps, _TICKS_PER_MS)
    words = _FRACTION[fractions]
    words[batch.lasts] = _LAST_FRACTION[fractions[batch.lasts]]
    characters = np.stack([*_digits(milliseconds), words], axis=1).view(np.uint8).ravel()
    lines = characters[characters != 0].tobytes().decode("ascii")
    return [f"[{line}]" for line in lines.splitlines()]


def _digits(numbers: NDArray[np.int64]) -> list[Words]:
    """Decimal digits in groups of four, the leading group first; a number without that many groups has blanks there."""
    higher, group = np.divmod(numbers, _GROUP)
    follows = higher > 0
    lowest = _DIGITS[group + _GROUP * follows]
    if not follows.any():
        return [lowest]
    *leading, last = _digits(higher)
    return [*leading, last * follows, lowest]
