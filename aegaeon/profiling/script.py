"""A scheduler that follows a script: each scene's commands are given when the requests that they need have arrived."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from aegaeon.core import event as e
from aegaeon.core.command import Command


class ScriptedScheduler:
    """``joined``: its instance is there. ``given``: the scene's commands have been given. ``turns_over``, ``fetched``:
    the turns that have ended, and the models that were read. ``failure``: why it cannot go on."""

    def __init__(self) -> None:
        self.joined = False
        self.given = False
        self.turns_over: set[int] = set()
        self.fetched: set[str] = set()
        self.failure: str | None = None
        self._awaited: set[str] = set()
        self._commands: list[Command] = []

    def play(self, request_ids: Iterable[str], commands: Sequence[Command]) -> None:
        """Give these commands as soon as these requests have arrived."""
        self._awaited, self._commands, self.given = set(request_ids), list(commands), False

    def handle(self, event: e.Event, now_s: float) -> list[Command]:
        """The next scene, where this was what it waited for."""
        match event:
            case e.RequestArrived():
                self._awaited.discard(event.request.request_id)
                self.given = not self._awaited
                return self._commands if self.given else []
            case e.InstanceJoined():
                self.joined = True
            case e.TurnEnded():
                self.turns_over.add(event.turn_id)
            case e.WeightsFetched():
                self.fetched.add(event.model)
            case e.RequestFailed() | e.ModelFailed():
                self.failure = event.reason
            case e.KvExhausted():
                self.failure = f"the KV cache has no block left for {event.request_id}"
            case _:
                pass  # of requests that go on as they should
        return []
