"""What a run came to: metrics, latency parts, switches, KV synchronisation, fragmentation; and every token's time.

An ``Observer``: it books requests soon after they end, some at a time, and keeps nothing else of them, so that a run of
a million requests fits in memory.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np

from aegaeon.core.record import RequestRecord
from aegaeon.core.timeline import LatencyParts
from aegaeon.metrics import TokenBatch
from sim.records.token_text import DROPPED_TEXT, gaps_texts
from sim.world.instance import SimInstance
from sim.world.request_state import RequestState
from sim.world.turn import SimTurn

_PARTS = ("prefill_wait_s", "prefill_s", "decode_wait_s", "decode_s", "control_s", "block_s")
_BATCH_TOKENS = 8192  # of requests that are booked together: few calls, and their arrays stay in the cache
_SHARES = (0.0, *(step / 100 for step in range(1, 100)), 0.999, 1.0)


@dataclass(slots=True)
class Tally:
    """``keep_records``: also the full record of each request (for comparing with real runs)."""

    keep_text: bool = True
    keep_records: bool = False
    requests: int = 0
    dropped: int = 0
    tokens: int = 0
    turns: int = 0
    switch_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    errors: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    last_s: float = 0.0
    _ended: list[RequestState] = field(default_factory=list)  # not booked yet
    _ended_tokens: int = 0
    _records: list[RequestRecord] = field(default_factory=list)
    _texts: dict[str, str] = field(default_factory=dict)
    _attainment: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    _qos: list[float] = field(default_factory=list)
    _parts: list[float] = field(default_factory=lambda: [0.0] * len(_PARTS))
    _kv_sync_s: list[float] = field(default_factory=list)

    # --- Observer

    def ended(self, request: RequestState, now_s: float) -> None:
        self.requests += 1
        self.last_s = max(self.last_s, now_s)
        self._ended.append(request)
        self._ended_tokens += request.generated
        if self._ended_tokens >= _BATCH_TOKENS:
            self._book()

    def switched(self, instance: SimInstance, turn: SimTurn, now_s: float) -> None:
        self.switch_s[turn.model.kind].append(now_s - turn.started_s)

    def turn_ended(self, instance: SimInstance, turn: SimTurn, now_s: float) -> None:
        self.turns += 1

    def kv_moved(
        self, instance: SimInstance, request: RequestState, start_s: float, end_s: float, inward: bool
    ) -> None:
        return

    # --- booking

    def _book(self) -> None:
        """Book those that have ended, in order, and forget them."""
        served = [request for request in self._ended if _is_served(request)]
        scores = _scores(served, self.keep_text) if served else iter(())
        for request in self._ended:
            if _is_served(request):
                self._book_served(request, next(scores))
            else:
                self._book_dropped(request)
        self._ended.clear()
        self._ended_tokens = 0

    def _book_dropped(self, request: RequestState) -> None:
        self.dropped += 1
        self.errors[(request.error or "lost").partition(":")[0]] += 1
        self._qos.append(0.0)
        self._attainment[request.request.model].append(0.0)
        if self.keep_text:
            self._texts[request.request_id] = DROPPED_TEXT
        if self.keep_records:
            self._records.append(_record(request, (), None))

    def _book_served(self, request: RequestState, score: _Score) -> None:
        self.tokens += request.generated
        self._qos.append(score.qos)
        self._attainment[request.request.model].append(score.attainment)
        parts_s = request.parts_s(score.first_s, score.last_s)
        for index, seconds in enumerate(parts_s):
            self._parts[index] += seconds
        self._kv_sync_s.append(request.control_s + request.kv_s)
        if self.keep_text:
            self._texts[request.request_id] = score.text
        if self.keep_records:
            self._records.append(_record(request, tuple(request.token_times().tolist()), LatencyParts(*parts_s)))

    # --- results

    @property
    def texts(self) -> Mapping[str, str]:
        """Token times by request id, as ``sim.records.token_text`` writes them; empty where they are not kept."""
        self._book()
        return self._texts

    @property
    def records(self) -> Sequence[RequestRecord]:
        """The records in the order in which requests ended; empty where they are not kept."""
        self._book()
        return self._records

    @property
    def switches(self) -> int:
        """How often an instance changed over to another model."""
        return sum(map(len, self.switch_s.values()))

    @property
    def qos(self) -> float:
        """Mean over requests; dropped ones count 0."""
        self._book()
        return _mean(self._qos)

    @property
    def slo_attainment(self) -> float:
        """Mean over requests; dropped ones count 0."""
        self._book()
        return _mean([value for values in self._attainment.values() for value in values])

    @property
    def worst_model(self) -> float:
        """The lowest ``slo_attainment`` of a model."""
        self._book()
        return min(map(_mean, self._attainment.values()), default=1.0)

    def summary(self) -> dict[str, Any]:
        """Plain numbers for the summary file."""
        self._book()
        done = max(1, self.requests - self.dropped)
        return {
            "slo_attainment": self.slo_attainment,
            "qos": self.qos,
            "worst_model": self.worst_model,
            "requests": self.requests,
            "dropped": self.dropped,
            "errors": dict(sorted(self.errors.items())),
            "tokens": self.tokens,
            "switches": self.switches,
            "turns": self.turns,
            "makespan_s": self.last_s,
            "parts": {name: self._parts[index] / done for index, name in enumerate(_PARTS)},
            "kv_sync_s": _quantiles(self._kv_sync_s),
            "switch_s": {kind: _quantiles(values) for kind, values in sorted(self.switch_s.items())},
        }


class _Score(NamedTuple):
    """What a request's token times come to; ``first_s`` and ``last_s``: when its first and its last token came."""

    qos: float
    attainment: float
    first_s: float
    last_s: float
    text: str


def _is_served(request: RequestState) -> bool:
    return request.error is None and bool(request.times)


def _scores(requests: Sequence[RequestState], with_text: bool) -> Iterator[_Score]:
    """The scores of requests that were served, all at once; at least one."""
    batch = TokenBatch.of_times(
        [times_s for request in requests for times_s in request.times],
        [request.generated for request in requests],
        [request.request.arrival_s for request in requests],
        [request.request.slo for request in requests],
    )
    return map(
        _Score,
        batch.qos().tolist(),
        batch.slo_attainment().tolist(),
        [float(request.times[0][0]) for request in requests],
        [float(request.times[-1][-1]) for request in requests],
        gaps_texts(batch) if with_text else repeat(""),
    )


def _record(request: RequestState, times_s: tuple[float, ...], parts: LatencyParts | None) -> RequestRecord:
    asked = request.request
    return RequestRecord(
        asked.request_id,
        asked.model,
        asked.arrival_s,
        asked.prompt_tokens,
        asked.max_new_tokens,
        times_s,
        asked.slo,
        parts,
        request.error,
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 1.0


def _quantiles(values: Sequence[float]) -> Mapping[str, float]:
    """Value by share of all values that do not exceed it; empty without values."""
    if not values:
        return {}
    return dict(zip(map(str, _SHARES), np.quantile(values, _SHARES).tolist(), strict=True))
