"""A turn as a simulated instance carries it out."""

from __future__ import annotations

from dataclasses import dataclass, field

from aegaeon.core.command import StartTurn
from aegaeon.core.event import TurnEndReason
from sim.world.model_facts import SimModel
from sim.world.request_state import RequestState


@dataclass(slots=True, eq=False)
class SimTurn:
    """``waiting`` members have a prompt to be processed, ``decoding`` ones produce tokens.

    ``leaving`` go at the next boundary. ``landing``: members that were prefilled and wait for their KV to land in the
    slab cache, the turn with them. ``until_s``: when its quota is over, known after its first step.
    """

    command: StartTurn
    model: SimModel
    started_s: float
    waiting: dict[str, RequestState] = field(default_factory=dict)
    decoding: dict[str, RequestState] = field(default_factory=dict)
    leaving: list[RequestState] = field(default_factory=list)
    landing: int = 0
    stopping: bool = False
    stepped: bool = False
    until_s: float | None = None
    ready_s: float = 0.0  # its command reaches the instance

    @property
    def turn_id(self) -> int:
        return self.command.turn_id

    def first_step(self, end_s: float) -> None:
        """The quota clock starts after the first step."""
        self.stepped = True
        if self.command.quota_s is not None:
            self.until_s = end_s + self.command.quota_s

    def over(self, now_s: float) -> TurnEndReason | None:
        """Why the turn ends at this boundary, if it does."""
        if self.stopping:
            return TurnEndReason.PREEMPTED
        if not (self.waiting or self.decoding or self.landing):
            return TurnEndReason.DRAINED
        if self.until_s is not None and now_s >= self.until_s:
            return TurnEndReason.QUOTA
        return None

    def drop(self, request: RequestState) -> None:
        """A member is none any more."""
        self.waiting.pop(request.request_id, None)
        self.decoding.pop(request.request_id, None)
