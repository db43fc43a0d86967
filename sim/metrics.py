"""The two metrics of requests from their token times, as arrays; the definitions are ``aegaeon.core.record``'s.

Does not know: runs, files.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aegaeon.core.slo import Slo
from sim.token_batch import Floats, TokenBatch


def slo_attainment(batch: TokenBatch, slos: Sequence[Slo]) -> Floats:
    """Share of each request's tokens that are on time [requests]."""
    late = batch.elapsed_s > _due_after_s(batch, slos) + 1e-9
    shares: Floats = 1.0 - np.add.reduceat(late, batch.firsts, dtype=np.int64) / batch.counts
    return shares


def qos(batch: TokenBatch, slos: Sequence[Slo]) -> Floats:
    """Share of each request's service time that is on target [requests] (see ``aegaeon.core.record.qos``)."""
    due_s = _due_after_s(batch, slos)
    missed = np.logical_or.reduceat(batch.elapsed_s > due_s, batch.firsts)
    total_s = batch.elapsed_s[batch.lasts]
    whole_s = np.array([slo.ttft_s for slo in slos]) + batch.counts * np.array([slo.tpot_s for slo in slos])
    shares: Floats = np.divide(np.minimum(whole_s, total_s), total_s, out=np.ones(len(slos)), where=total_s > 0)
    for index in missed.nonzero()[0].tolist():
        tokens = slice(int(batch.firsts[index]), int(batch.firsts[index] + batch.counts[index]))
        shares[index] = _qos_with_misses(batch.elapsed_s[tokens], due_s[tokens], float(whole_s[index]))
    return shares


def _due_after_s(batch: TokenBatch, slos: Sequence[Slo]) -> Floats:
    """When each token is due, in seconds after its request's arrival [tokens]."""
    counts = batch.counts
    index = np.arange(len(batch.times_s)) - np.repeat(batch.firsts, counts)
    ttft_s = np.repeat(np.array([slo.ttft_s for slo in slos]), counts)
    due_s: Floats = ttft_s + index * np.repeat(np.array([slo.tpot_s for slo in slos]), counts)
    return due_s


def _qos_with_misses(elapsed_s: Floats, due_s: Floats, whole_s: float) -> float:
    """Of one request: jumps from miss to miss. ``whole_s``: when a token after the last would be due."""
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
    return (booked_s + min(whole_s, total_s - start_s)) / total_s
