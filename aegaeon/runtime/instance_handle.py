"""An instance as its driver sees it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from aegaeon.core.instance import InstanceSpec
from aegaeon.runtime.link import Link
from aegaeon.runtime.messages import InstanceState


@dataclass(slots=True)
class InstanceHandle:
    """Mutable state of one incarnation of an instance. ``key`` is unique to it; the id survives a restart."""

    spec: InstanceSpec
    incarnation: int
    link: Link
    alive: bool = False
    pid: int = 0
    turn_id: int | None = None
    model: str | None = None
    keep_prefilled: bool = False
    attempted: tuple[str, ...] | None = None  # who is in the step; empty while the model is bound; None: not told
    alone: str | None = None  # the suspect that has the turn to itself
    members: set[str] = field(default_factory=set)
    models: dict[str, None] = field(default_factory=dict)
    turns: int = 0
    switches: int = 0

    @property
    def instance_id(self) -> str:
        return self.spec.instance_id

    @property
    def key(self) -> str:
        return f"{self.instance_id}:{self.incarnation}"

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
        self.switches += switched

    def state(self) -> InstanceState:
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
        )
