"""The two metrics of requests from their token times, as arrays; the definitions are ``aegaeon.core.record``'s.

Does not know: runs, files.
"""

from __future__ import annotations

import numpy as np

from sim.records.token_batch import Floats, TokenBatch


def slo_attainment(batch: TokenBatch) -> Floats:
    """Share of each request's tokens that are on time [requests]."""
    late = batch.elapsed_s > batch.due_s + 1e-9
    shares: Floats = 1.0 - np.add.reduceat(late, batch.firsts, dtype=np.int64) / batch.counts
    return shares


def qos(batch: TokenBatch) -> Floats:
    """Share of each request's service time that is on target [requests] (see ``aegaeon.core.record.qos``)."""
    missed = np.logical_or.reduceat(batch.elapsed_s > batch.due_s, batch.firsts)
    total_s = batch.elapsed_s[batch.lasts]
    on_target_s = np.minimum(batch.next_due_s, total_s)
    shares: Floats = np.divide(on_target_s, total_s, out=np.ones(len(total_s)), where=total_s > 0)
    for index in missed.nonzero()[0].tolist():
        tokens = slice(int(batch.firsts[index]), int(batch.lasts[index]) + 1)
        shares[index] = _qos_with_misses(batch.elapsed_s[tokens], batch.due_s[tokens], float(batch.next_due_s[index]))
    return shares


def _qos_with_misses(elapsed_s: Floats, due_s: Floats, next_due_s: float) -> float:
    """Of one request: jumps from miss to miss."""
    total_s = float(elapsed_s[-1])
    start_s = booked_s = 0.0
    first = 0
    while first < len(elapsed_s):
        missed = elapsed_s[first:] - start_s > due_s[first:]
        step = int(missed.argmax())
        if not missed[step]:
            break
        miss = first + step
        booked_s += float(due_s[miss - 1]) if step else 0.0
        start_s, first = float(elapsed_s[miss]), miss + 1
    return (booked_s + min(next_due_s, total_s - start_s)) / total_s
