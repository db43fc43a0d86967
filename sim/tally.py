"""What a run came to: metrics, latency parts, switches, KV synchronisation, fragmentation; and every token's time.

An ``Observer``: it books each request when it ends and keeps nothing else of it, so that a run of a million requests
fits in memory.

Does not know: files, figures.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aegaeon.core.record import RequestRecord
from aegaeon.core.timeline import LatencyParts
from sim.instance import SimInstance
from sim.metrics import qos, slo_attainment
from sim.request_state import RequestState
from sim.token_text import DROPPED_TEXT, gaps_text
from sim.turn import SimTurn

_PARTS = ("prefill_wait_s", "prefill_s", "decode_wait_s", "decode_s", "control_s", "block_s")
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
    records: list[RequestRecord] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    last_s: float = 0.0
    _attainment: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    _qos: list[float] = field(default_factory=list)
    _parts: list[float] = field(default_factory=lambda: [0.0] * len(_PARTS))
    _kv_sync_s: list[float] = field(default_factory=list)

    # --- Observer

    def ended(self, request: RequestState, now_s: float) -> None:
        self.requests += 1
        self.last_s = max(self.last_s, now_s)
        times_s = request.token_times()
        if request.error is not None or not len(times_s):
            self._book_dropped(request)
        else:
            self._book_done(request, times_s)
        request.times = []

    def switched(self, instance: SimInstance, turn: SimTurn, now_s: float) -> None:
        self.switch_s[turn.model.kind].append(now_s - turn.started_s)

    def turn_ended(self, instance: SimInstance, turn: SimTurn, now_s: float) -> None:
        self.turns += 1

    def kv_moved(
        self, instance: SimInstance, request: RequestState, start_s: float, end_s: float, inward: bool
    ) -> None:
        return

    # --- booking

    def _book_dropped(self, request: RequestState) -> None:
        self.dropped += 1
        self.errors[(request.error or "lost").partition(":")[0]] += 1
        self._qos.append(0.0)
        self._attainment[request.request.model].append(0.0)
        if self.keep_text:
            self.texts[request.request_id] = DROPPED_TEXT
        if self.keep_records:
            self.records.append(_record(request, (), None, request.error))

    def _book_done(self, request: RequestState, times_s: NDArray[np.float64]) -> None:
        asked = request.request
        elapsed_s = times_s - asked.arrival_s
        self.tokens += len(times_s)
        self._qos.append(qos(elapsed_s, asked.slo))
        self._attainment[asked.model].append(slo_attainment(elapsed_s, asked.slo))
        parts = request.parts(float(times_s[0]), float(times_s[-1]))
        for index, name in enumerate(_PARTS):
            self._parts[index] += getattr(parts, name)
        self._kv_sync_s.append(parts.control_s + parts.block_s)
        if self.keep_text:
            self.texts[request.request_id] = gaps_text(elapsed_s)
        if self.keep_records:
            self.records.append(_record(request, tuple(times_s.tolist()), parts, None))

    # --- results

    @property
    def switches(self) -> int:
        """How often an instance changed over to another model."""
        return sum(map(len, self.switch_s.values()))

    @property
    def qos(self) -> float:
        """Mean over requests; dropped ones count 0."""
        return _mean(self._qos)

    @property
    def slo_attainment(self) -> float:
        """Mean over requests; dropped ones count 0."""
        return _mean([value for values in self._attainment.values() for value in values])

    @property
    def worst_model(self) -> float:
        """The lowest ``slo_attainment`` of a model."""
        return min(map(_mean, self._attainment.values()), default=1.0)

    def summary(self) -> dict[str, Any]:
        """Plain numbers for the summary file."""
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


def _record(
    request: RequestState, times_s: tuple[float, ...], parts: LatencyParts | None, error: str | None
) -> RequestRecord:
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
        error,
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 1.0


def _quantiles(values: Sequence[float]) -> Mapping[str, float]:
    """Value by share of all values that do not exceed it; empty without values."""
    if not values:
        return {}
    return dict(zip(map(str, _SHARES), np.quantile(values, _SHARES).tolist(), strict=True))
