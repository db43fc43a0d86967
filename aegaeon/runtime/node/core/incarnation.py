"""One incarnation of an instance as its driver sees it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from aegaeon.core.instance import InstanceSpec
from aegaeon.runtime.process.backoff import ran_well
from aegaeon.runtime.recovery.vigil import Vigil
from aegaeon.runtime.wire.messages import InstanceState

# An instance that lived so long has started well, even if nobody asked anything of it.
_WELL_AFTER_S = 30.0


def instance_key(instance_id: str, incarnation: int) -> str:
    """The name of one process of an instance; the id survives a restart."""
    return f"{instance_id}:{incarnation}"


@dataclass(slots=True)
class Incarnation:
    """Mutable state of one process of an instance. ``key`` is unique to it; the id survives a restart.

    ``watched``: the kernel tells of its end. ``trouble``: what is wrong with it just now. ``verdict``: why it was
    killed. ``turns_done``: turns that came to their end.
    """

    spec: InstanceSpec
    number: int
    since_s: float
    vigil: Vigil | None = None
    alive: bool = False
    pid: int = 0
    watched: bool = False
    trouble: str = ""
    verdict: str = ""
    turn_id: int | None = None
    model: str | None = None
    keep_prefilled: bool = False
    attempted: tuple[str, ...] | None = None  # who is in the step; empty while the model is bound; None: not told
    alone: str | None = None  # the suspect that has the turn to itself
    members: set[str] = field(default_factory=set)
    models: dict[str, None] = field(default_factory=dict)
    turns: int = 0
    turns_done: int = 0
    switches: int = 0

    @property
    def instance_id(self) -> str:
        return self.spec.instance_id

    @property
    def key(self) -> str:
        return instance_key(self.instance_id, self.number)

    def ran_well(self, now_s: float) -> bool:
        """Whether it did anything, or stayed long enough to show that it could have."""
        return self.alive and (self.turns_done > 0 or ran_well(self.since_s, now_s, _WELL_AFTER_S))

    def start(self, pid: int, now_s: float) -> None:
        """It is ready."""
        self.alive, self.pid, self.since_s = True, pid, now_s

    def begin(self, turn_id: int, model: str, keep_prefilled: bool, members: Iterable[str]) -> None:
        """A turn was sent."""
        self.turn_id, self.model, self.keep_prefilled = turn_id, model, keep_prefilled
        self.members = set(members)
        self.attempted = self.alone = None
        self.turns += 1

    def end(self, switched: bool) -> None:
        """The turn is over."""
        self.turn_id, self.members = None, set()
        self.attempted = self.alone = None
        self.turns_done += 1
        self.switches += switched

    def state(self, now_s: float) -> InstanceState:
        """How it is shown to those who look at the pool."""
        return InstanceState(
            self.instance_id,
            self.spec.role,
            self.model if self.turn_id is not None else None,
            tuple(self.models),
            len(self.members),
            self.alive,
            self.pid,
            self.turns,
            self.switches,
            self.trouble,
            self.vigil.for_s if self.vigil is not None and self.trouble else max(0.0, now_s - self.since_s),
        )
