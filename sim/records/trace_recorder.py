"""Records turns, switches and KV moves of a simulated run for ``sim.records.chrome_trace``."""

from __future__ import annotations

from sim.records.chrome_trace import TraceRow, TraceSpan
from sim.world.instance import SimInstance
from sim.world.request_state import RequestState
from sim.world.turn import SimTurn


class TraceRecorder:
    """An ``Observer`` that keeps every span; a turn's begins when its model is there."""

    def __init__(self) -> None:
        self.spans: list[TraceSpan] = []
        self._ready_s: dict[tuple[str, int], float] = {}

    def ended(self, request: RequestState, now_s: float) -> None:
        return

    def switched(self, instance: SimInstance, turn: SimTurn, now_s: float) -> None:
        self._ready_s[instance.instance_id, turn.turn_id] = now_s
        self._add(instance, TraceRow.SWITCH, turn.model.name, turn.started_s, now_s, turn.model.kind)

    def turn_ended(self, instance: SimInstance, turn: SimTurn, now_s: float) -> None:
        start_s = self._ready_s.pop((instance.instance_id, turn.turn_id), turn.started_s)
        members = len(turn.command.prefill) + len(turn.command.decode)
        self._add(
            instance, TraceRow.TURN, turn.model.name, start_s, now_s, f"turn {turn.turn_id}, {members} at its start"
        )

    def kv_moved(
        self, instance: SimInstance, request: RequestState, start_s: float, end_s: float, inward: bool
    ) -> None:
        row = TraceRow.KV_IN if inward else TraceRow.KV_OUT
        self._add(instance, row, request.model.name, start_s, end_s, f"request {request.request_id}")

    def _add(self, instance: SimInstance, row: TraceRow, model: str, start_s: float, end_s: float, detail: str) -> None:
        if end_s > start_s:
            self.spans.append(TraceSpan(instance.instance_id, row, model, start_s, end_s, detail))
