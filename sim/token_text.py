"""A request's token times as the artifact writes them: ``[ttft_ms, gap_ms, ...]`` in JSON, ``[-1]`` if dropped.

Times are rounded to 0.01 ms before gaps are taken, so errors do not add up; gaps come from a table of texts, which is
what makes a sweep's 10^8 numbers affordable.

Does not know: files, requests.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

DROPPED_TEXT = "[-1]"
_TICKS_PER_S = 100_000


class _Texts(dict[int, str]):
    """Ticks of 0.01 ms as milliseconds in JSON; grown on demand, bounded by the gaps that occur."""

    def __missing__(self, ticks: int) -> str:
        text = f"{ticks // 100}.{ticks % 100:02d}"
        if ticks < 1 << 17:  # longer gaps are rare, and all different
            self[ticks] = text
        return text


_TEXTS = _Texts()


def gaps_text(elapsed_s: NDArray[np.float64]) -> str:
    """``elapsed_s``: when each token came after arrival, ascending seconds, not empty."""
    ticks = np.rint(elapsed_s * _TICKS_PER_S).astype(np.int64)
    gaps = ticks.copy()
    gaps[1:] -= ticks[:-1]
    return f"[{','.join([_TEXTS[gap] for gap in gaps.tolist()])}]"
