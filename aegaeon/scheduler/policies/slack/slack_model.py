"""A model as the policy ``slack`` follows it: who waits for it, where its weights are, which turns run it."""

from __future__ import annotations

from dataclasses import dataclass, field

from aegaeon.core.instance import Role
from aegaeon.scheduler.facts import PolicyFacts
from aegaeon.scheduler.policies.slack.account import Account
from aegaeon.scheduler.policies.slack.due_queue import DueQueue
from aegaeon.scheduler.policies.slack.slack_job import SlackJob
from aegaeon.scheduler.policies.slack.slack_turn import SlackTurn


@dataclass(slots=True, eq=False)
class SlackModel:
    """``waiting`` and ``decoding``: members in no turn. ``turns``: those that run it, by instance.

    ``homes``: instances that have its weights, or are getting them. ``served_s``: when a turn of it last began or
    ended. ``step_s``: a decode step of a lone request. ``key_s``: its key in the agenda, as of ``keyed_s``;
    ``roles``: of the instances that find it there.
    ``account``: how much of what its members were owed has come late; ``of_all``: the same of every model's.
    """

    facts: PolicyFacts
    order: int
    step_s: float
    waiting: DueQueue = field(default_factory=DueQueue)
    decoding: DueQueue = field(default_factory=DueQueue)
    turns: dict[str, SlackTurn] = field(default_factory=dict)
    homes: dict[str, None] = field(default_factory=dict)
    served_s: float = 0.0
    key_s: float | None = None
    keyed_s: float = 0.0
    roles: tuple[Role, ...] = ()
    account: Account = field(default_factory=Account)
    of_all: Account = field(default_factory=Account)

    @property
    def name(self) -> str:
        return self.facts.name

    def has_work(self, role: Role = Role.MIXED) -> bool:
        """Whether somebody waits for what an instance of this role does."""
        return bool((self.waiting and role.prefills) or (self.decoding and role.decodes))

    def note_late(self, now_s: float) -> None:
        """Account for those who wait and are late."""
        waiting, decoding = self.waiting, self.decoding
        in_turns = sum([len(turn.members) for turn in self.turns.values()])
        seconds = now_s - self.account.noted_s
        late_s = seconds * (waiting.late(now_s) + decoding.late(now_s))
        live_s = seconds * (len(waiting) + len(decoding) + in_turns)
        self.account.add(late_s, live_s, now_s)
        self.of_all.add(late_s, live_s, now_s)

    def queue_of(self, member: SlackJob) -> DueQueue:
        """Where a member waits in its phase."""
        return self.decoding if member.decodes else self.waiting
