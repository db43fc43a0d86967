"""What is to be known of a run while it goes: the node reports here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from sim.world.request_state import RequestState
from sim.world.turn import SimTurn

if TYPE_CHECKING:
    from sim.world.instance import SimInstance


class WorldObserver(Protocol):
    """Takes notes; must not change anything."""

    def ended(self, request: RequestState, now_s: float) -> None:
        """A request is over: it has all its tokens, or ``error`` says why not."""
        ...

    def switched(self, instance: SimInstance, turn: SimTurn, now_s: float) -> None:
        """An instance that ran another model before begins to run the turn's."""
        ...

    def turn_ended(self, instance: SimInstance, turn: SimTurn, now_s: float) -> None:
        """A turn is over."""
        ...

    def kv_moved(
        self, instance: SimInstance, request: RequestState, start_s: float, end_s: float, inward: bool
    ) -> None:
        """A copy of KV between host and device was queued, and this is when it takes place."""
        ...
