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

_LATEST = 0.2  # what the latest turn counts in a running mean


@dataclass(slots=True, eq=False)
class ModelState:
    """``waiting`` and ``decoding``: members in no turn. ``turns``: those that run it, by instance.

    ``homes``: instances that have its weights, or are getting them. ``served_s``: when a turn of it last began or
    ended. ``step_s``: a decode step of a lone request. ``key_s``: its key in the agenda, as of ``keyed_s``.
    ``missed_share``: of its members that were late when its recent turns began.
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
    missed_share: float = 0.0

    @property
    def name(self) -> str:
        return self.facts.name

    def has_work(self, role: Role = Role.MIXED) -> bool:
        """Whether somebody waits for what an instance of this role does."""
        return bool((self.waiting and role.prefills) or (self.decoding and role.decodes))

    def note_late(self, share: float) -> None:
        """This share of the members of a turn was late when it began."""
        self.missed_share += _LATEST * (share - self.missed_share)

    def queue_of(self, member: Member) -> DueQueue:
        """Where a member waits in its phase."""
        return self.decoding if member.decodes else self.waiting
