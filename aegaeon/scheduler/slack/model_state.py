"""A model as the policy ``slack`` follows it: who waits for it, where its weights are, which turns run it.

Does not know: memory, how urgent it is, which instance takes it next.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from aegaeon.core.instance import Role
from aegaeon.scheduler.facts import ModelFacts
from aegaeon.scheduler.slack.due_queue import DueQueue
from aegaeon.scheduler.slack.member import Member
from aegaeon.scheduler.slack.turn import Turn

_MEMORY_S = 30.0  # time constant of a running mean


@dataclass(slots=True, eq=False)
class ModelState:
    """``waiting`` and ``decoding``: members in no turn. ``turns``: those that run it, by instance.

    ``homes``: instances that have its weights, or are getting them. ``served_s``: when a turn of it last began or
    ended. ``step_s``: a decode step of a lone request. ``key_s``: its key in the agenda, as of ``keyed_s``;
    ``roles``: of the instances that find it there.
    ``missed_share``: running mean, as of ``noted_s``, of the share of its members that wait and are late.
    """

    facts: ModelFacts
    order: int
    step_s: float
    waiting: DueQueue = field(default_factory=DueQueue)
    decoding: DueQueue = field(default_factory=DueQueue)
    turns: dict[str, Turn] = field(default_factory=dict)
    homes: dict[str, None] = field(default_factory=dict)
    served_s: float = 0.0
    key_s: float | None = None
    keyed_s: float = 0.0
    roles: tuple[Role, ...] = ()
    missed_share: float = 0.0
    noted_s: float = 0.0

    @property
    def name(self) -> str:
        return self.facts.name

    def has_work(self, role: Role = Role.MIXED) -> bool:
        """Whether somebody waits for what an instance of this role does."""
        return bool((self.waiting and role.prefills) or (self.decoding and role.decodes))

    def note_late(self, now_s: float) -> None:
        """Fold the share of those who wait that is late into its running mean."""
        waiting = len(self.waiting) + len(self.decoding)
        share = (self.waiting.late(now_s) + self.decoding.late(now_s)) / waiting if waiting else 0.0
        self.missed_share += (share - self.missed_share) * min(1.0, (now_s - self.noted_s) / _MEMORY_S)
        self.noted_s = now_s

    def queue_of(self, member: Member) -> DueQueue:
        """Where a member waits in its phase."""
        return self.decoding if member.decodes else self.waiting
