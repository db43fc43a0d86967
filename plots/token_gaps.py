"""The token times of many requests at once, and the two metrics over them.

The same numbers as ``aegaeon.core.record``, bit for bit, for millions of tokens per second.

Does not know: files, systems, what the requests asked for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain, pairwise
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from aegaeon.core.slo import Slo

DROPPED = -1  # the only entry of a request that has no token times
ROUNDING_S = 1e-9  # as in aegaeon.core.record: a token that is late by less is on time
BATCH_TOKENS = 4_000_000  # of a padded matrix, so that memory stays small whatever the file

Floats = NDArray[np.float64]


class Metric(StrEnum):
    """What an attainment curve shows; both are averages over requests, and a dropped request counts 0."""

    SLO_ATTAINMENT = "slo_attainment"  # share of tokens by their due time
    QOS = "qos"  # share of service time on target: what the artifact's plots call SLO attainment


@dataclass(frozen=True, slots=True)
class TokenGaps:
    """TTFT, then gaps between tokens: ``gaps_s`` [tokens], requests end to end; ``counts`` [requests], 0 if dropped."""

    gaps_s: Floats
    counts: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.counts.sum() != len(self.gaps_s):
            raise ValueError(f"{len(self.gaps_s)} gaps cannot be {self.counts.sum()} tokens")
        if not (self.gaps_s >= 0).all():
            raise ValueError("token gaps must not be negative")

    @classmethod
    def of(cls, per_token: Collection[Sequence[float]], unit_s: float) -> TokenGaps:
        """From a list per request, in units of ``unit_s`` seconds; ``[-1]`` is a request that was dropped.

        Raises ``ValueError`` or ``TypeError`` if they are not lists of times.
        """
        kept = [() if len(gaps) == 0 or (len(gaps) == 1 and gaps[0] == DROPPED) else gaps for gaps in per_token]
        counts = np.fromiter(map(len, kept), np.int64, len(kept))
        gaps = np.fromiter(chain.from_iterable(kept), np.float64, int(counts.sum()))
        return cls(gaps * unit_s, counts)

    def mean(self, metric: Metric, slo: Slo) -> float:
        """The metric averaged over requests; 1 if there is none."""
        return float(self.by_request(metric, slo).mean()) if len(self.counts) else 1.0

    def by_request(self, metric: Metric, slo: Slo) -> Floats:
        """The metric of each request [requests], in their order."""
        match metric:
            case Metric.SLO_ATTAINMENT:
                score = _slo_attainment
            case Metric.QOS:
                score = _qos
            case _:
                assert_never(metric)
        scores = np.zeros(len(self.counts))
        for rows, padded_s in self._batches():
            scores[rows] = score(padded_s, self.counts[rows], slo)
        return scores

    def _batches(self) -> Iterator[tuple[NDArray[np.int64], Floats]]:
        """Requests that have tokens, of similar length together: their indices, and gaps [requests, longest]."""
        order = np.argsort(-self.counts, kind="stable")
        order = order[: np.count_nonzero(self.counts)]
        starts = np.cumsum(self.counts) - self.counts
        edges = [0]
        while edges[-1] < len(order):
            edges.append(min(len(order), edges[-1] + max(1, BATCH_TOKENS // int(self.counts[order[edges[-1]]]))))
        for first, end in pairwise(edges):
            rows = order[first:end]
            columns = np.arange(self.counts[rows[0]])
            filled = columns < self.counts[rows][:, None]
            yield rows, np.where(filled, self.gaps_s[np.where(filled, starts[rows][:, None] + columns, 0)], 0.0)


def _slo_attainment(gaps_s: Floats, counts: NDArray[np.int64], slo: Slo) -> Floats:
    """Share of tokens on time of each row; token k is due ``ttft_s + k * tpot_s`` after arrival."""
    columns = np.arange(gaps_s.shape[1])
    on_time = np.cumsum(gaps_s, axis=1) <= slo.ttft_s + columns * slo.tpot_s + ROUNDING_S
    shares: Floats = (on_time & (columns < counts[:, None])).sum(axis=1) / counts
    return shares


def _qos(gaps_s: Floats, counts: NDArray[np.int64], slo: Slo) -> Floats:
    """``aegaeon.core.record.qos`` of all rows side by side; rows must be sorted, the longest first."""
    elapsed_s = np.cumsum(gaps_s, axis=1)
    start_s, covered_s, booked_s, last_s = (np.zeros(len(counts)) for _ in range(4))
    target_s, targets_s = slo.ttft_s, np.zeros(len(counts))
    active = np.searchsorted(-counts, -np.arange(gaps_s.shape[1]), side="left")  # rows that have a k-th token
    for column, rows in enumerate(active):
        now_s = elapsed_s[:rows, column]
        missed = now_s - start_s[:rows] > target_s
        booked_s[:rows] += np.where(missed, covered_s[:rows], 0.0)
        start_s[:rows] = np.where(missed, now_s, start_s[:rows])
        covered_s[:rows] = np.where(missed, 0.0, target_s)
        target_s += slo.tpot_s
        targets_s[:rows], last_s[:rows] = target_s, now_s
    booked_s += np.minimum(targets_s, last_s - start_s)
    return np.divide(booked_s, last_s, out=np.ones_like(last_s), where=last_s > 0)
