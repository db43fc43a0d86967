"""A turn under way, as the scheduler believes it to be."""

from __future__ import annotations

from dataclasses import dataclass, field

from aegaeon.scheduler.policies.paper.batch import Batch
from aegaeon.scheduler.policies.paper.group import Group


@dataclass(slots=True, eq=False)
class PaperTurn:
    """Runs a group (prefill) or a batch (decode).

    ``members``: the requests that were put into it and have not left it. ``ending``: ``EndTurn`` was given, nothing may
    join any more.
    """

    turn_id: int
    source: Group | Batch
    quota_s: float | None
    started_s: float
    members: dict[str, None] = field(default_factory=dict)
    ending: bool = False

    @property
    def model(self) -> str:
        """The model that runs."""
        return self.source.model

    @property
    def newcomers(self) -> list[str]:
        """Members of the group or batch that were not put into the turn yet, in order."""
        members = self.members
        if len(self.source.members) == len(members):  # a turn's members are its source's
            return []
        return [request_id for request_id in self.source.members if request_id not in members]

    def remaining_s(self, now_s: float) -> float:
        """How long it may go on at most, as far as that is known; 0 where it can be ended at once."""
        return max(0.0, self.quota_s - (now_s - self.started_s)) if self.quota_s is not None else 0.0
