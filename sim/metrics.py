"""The two metrics of one request from its token times, as arrays; the definitions are ``aegaeon.core.record``'s.

Does not know: runs, files.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from aegaeon.core.slo import Slo

_INDEX = np.arange(4096, dtype=np.float64)


def due_after_s(count: int, slo: Slo) -> NDArray[np.float64]:
    """When each of the first ``count`` tokens is due, in seconds after arrival."""
    index = _INDEX[:count] if count <= len(_INDEX) else np.arange(count, dtype=np.float64)
    due: NDArray[np.float64] = slo.ttft_s + index * slo.tpot_s
    return due


def slo_attainment(elapsed_s: NDArray[np.float64], slo: Slo) -> float:
    """Share of tokens on time. ``elapsed_s``: when each token came, after arrival; not empty."""
    late = elapsed_s > due_after_s(len(elapsed_s), slo) + 1e-9
    return 1.0 - float(np.count_nonzero(late)) / len(elapsed_s)


def qos(elapsed_s: NDArray[np.float64], slo: Slo) -> float:
    """Share of service time on target (see ``aegaeon.core.record.qos``): jumps from miss to miss."""
    total_s = float(elapsed_s[-1])
    if total_s <= 0:
        return 1.0
    targets = due_after_s(len(elapsed_s), slo)
    start_s = booked_s = 0.0
    first = 0
    while True:
        missed = elapsed_s[first:] - start_s > targets[first:]
        step = int(missed.argmax())
        if not missed[step]:
            break
        miss = first + step
        booked_s += float(targets[miss - 1]) if step else 0.0
        start_s, first = float(elapsed_s[miss]), miss + 1
        if first == len(elapsed_s):
            break
    last_target_s = slo.ttft_s + len(elapsed_s) * slo.tpot_s
    return (booked_s + min(last_target_s, total_s - start_s)) / total_s
