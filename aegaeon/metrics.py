"""The metrics of many requests at once: the same numbers as ``aegaeon.core.record``, bit for bit, over arrays."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain
from typing import Self, TypeAlias, assert_never

import numpy as np
from numpy.typing import NDArray

from aegaeon.core.record import RequestRecord, mean_attainment, mean_qos
from aegaeon.core.slo import Slo

DROPPED = -1  # the only entry of a request that has no token times
ROUNDING_S = 1e-9  # as in aegaeon.core.record: a token that is late by less is on time

Floats: TypeAlias = NDArray[np.float64]
Counts: TypeAlias = NDArray[np.int64]


class Metric(StrEnum):
    """What an attainment curve shows; both are averages over requests, and a dropped request counts 0."""

    SLO_ATTAINMENT = "slo_attainment"  # share of tokens by their due time
    QOS = "qos"  # share of service time on target: what the artifact's plots call SLO attainment


@dataclass(frozen=True, slots=True, eq=False)
class TokenBatch:
    """The tokens of several requests, end to end. ``elapsed_s`` [tokens]: when each came, after its request's arrival.

    ``counts`` [requests]: tokens of each, at least one; ``firsts``, ``lasts`` [requests]: the indices of its first and
    its last one; ``slos``: its targets.
    """

    elapsed_s: Floats
    counts: Counts
    firsts: Counts
    lasts: Counts
    slos: Sequence[Slo]

    @classmethod
    def of(cls, elapsed_s: Floats, counts: Counts, slos: Sequence[Slo]) -> Self:
        """One count and target for each request."""
        ends = counts.cumsum()
        return cls(elapsed_s, counts, ends - counts, ends - 1, slos)

    @classmethod
    def of_times(
        cls, pieces: Sequence[Floats], counts: Sequence[int], arrivals_s: Sequence[float], slos: Sequence[Slo]
    ) -> Self:
        """``pieces``: absolute token times, in any number of pieces; one count, arrival and target for each request."""
        tokens = np.array(counts, dtype=np.int64)
        return cls.of(np.concatenate(pieces) - np.repeat(np.array(arrivals_s), tokens), tokens, slos)

    def slo_attainment(self) -> Floats:
        """Share of each request's tokens that are on time [requests]: token k is due ``ttft_s + k * tpot_s``."""
        ttft_s, tpot_s = np.array([(slo.ttft_s, slo.tpot_s) for slo in self.slos]).T
        due_s = np.repeat(ttft_s, self.counts) + self._index * np.repeat(tpot_s, self.counts)
        on_time = self.elapsed_s <= due_s + ROUNDING_S
        shares: Floats = np.add.reduceat(on_time, self.firsts, dtype=np.int64) / self.counts
        return shares

    def qos(self) -> Floats:
        """Share of each request's service time that is on target [requests] (see ``aegaeon.core.record.qos``)."""
        targets_s, next_s = self._targets_s()
        missed = np.logical_or.reduceat(self.elapsed_s > targets_s, self.firsts)
        total_s = self.elapsed_s[self.lasts]
        on_target_s = np.minimum(next_s, total_s)
        shares: Floats = np.divide(on_target_s, total_s, out=np.ones(len(total_s)), where=total_s > 0)
        for index in missed.nonzero()[0].tolist():
            tokens = slice(int(self.firsts[index]), int(self.lasts[index]) + 1)
            shares[index] = _qos_with_misses(self.elapsed_s[tokens], targets_s[tokens], float(next_s[index]))
        return shares

    @property
    def _index(self) -> Counts:
        """The index of each token within its request [tokens]."""
        return np.arange(len(self.elapsed_s)) - np.repeat(self.firsts, self.counts)

    def _targets_s(self) -> tuple[Floats, Floats]:
        """[tokens] and, after the last one, [requests]: targets that grow by one TPOT a token, added one by one."""
        kinds = {slo: kind for kind, slo in enumerate(dict.fromkeys(self.slos))}
        steps_s = np.array([[slo.ttft_s, *[slo.tpot_s] * int(self.counts.max())] for slo in kinds])
        table_s = steps_s.cumsum(axis=1)
        kind = np.array([kinds[slo] for slo in self.slos])
        return table_s[np.repeat(kind, self.counts), self._index], table_s[kind, self.counts]


def _qos_with_misses(elapsed_s: Floats, targets_s: Floats, next_target_s: float) -> float:
    """The metric of one request, from miss to miss."""
    total_s = float(elapsed_s[-1])
    start_s = booked_s = 0.0
    first = 0
    while first < len(elapsed_s):
        missed = elapsed_s[first:] - start_s > targets_s[first:]
        step = int(missed.argmax())
        if not missed[step]:
            break
        miss = first + step
        booked_s += float(targets_s[miss - 1]) if step else 0.0
        start_s, first = float(elapsed_s[miss]), miss + 1
    return (booked_s + min(next_target_s, total_s - start_s)) / total_s


@dataclass(frozen=True, slots=True)
class TokenGaps:
    """TTFT, then gaps between tokens: ``gaps_s`` [tokens], requests end to end; ``counts`` [requests], 0 if dropped."""

    gaps_s: Floats
    counts: Counts

    def __post_init__(self) -> None:
        if self.counts.sum() != len(self.gaps_s):
            raise ValueError(f"{len(self.gaps_s)} gaps cannot be {self.counts.sum()} tokens")
        if not (self.gaps_s >= 0).all():
            raise ValueError("token gaps must not be negative")

    @classmethod
    def of(cls, per_token: Collection[Sequence[float]], unit_s: float) -> Self:
        """The gaps of a list per request, in units of ``unit_s`` seconds; ``[-1]`` is a request that was dropped.

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
        scores = np.zeros(len(self.counts))
        served = self.counts > 0
        if not served.any():
            return scores
        batch = TokenBatch.of(self._elapsed_s(), self.counts[served], [slo] * int(served.sum()))
        match metric:
            case Metric.SLO_ATTAINMENT:
                scores[served] = batch.slo_attainment()
            case Metric.QOS:
                scores[served] = batch.qos()
            case _:
                assert_never(metric)
        return scores

    def _elapsed_s(self) -> Floats:
        """Sums within each request [tokens]."""
        elapsed_s = np.empty_like(self.gaps_s)
        ends = self.counts.cumsum()
        for first, end in zip((ends - self.counts).tolist(), ends.tolist(), strict=True):
            np.cumsum(self.gaps_s[first:end], out=elapsed_s[first:end])
        return elapsed_s


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Percentiles of a sample, interpolated."""

    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Self:
        """The percentiles of the values that there are; not a number where there is none."""
        known = [value for value in values if value is not None]
        return cls(*np.quantile(known or [np.nan], (0.5, 0.9, 0.99)).tolist())


@dataclass(frozen=True, slots=True)
class RunMetrics:
    """What the clients of a run saw. ``worst_model``: the attainment of the model that has the least."""

    requests: int
    failed: int
    tokens: int
    slo_attainment: float
    qos: float
    worst_model: float
    ttft_s: Percentiles
    tpot_s: Percentiles

    @classmethod
    def of(cls, records: Sequence[RequestRecord]) -> Self:
        """The metrics of all records together."""
        return cls(
            len(records),
            sum(record.error is not None for record in records),
            sum(len(record.token_times_s) for record in records),
            mean_attainment(records),
            mean_qos(records),
            min(map(mean_attainment, by_model(records).values()), default=1.0),
            Percentiles.of(record.ttft_s for record in records),
            Percentiles.of(record.tpot_s for record in records),
        )


def by_model(records: Iterable[RequestRecord]) -> dict[str, list[RequestRecord]]:
    """Records of each model, models in order of their names."""
    groups = defaultdict(list)
    for record in records:
        groups[record.model].append(record)
    return dict(sorted(groups.items()))
