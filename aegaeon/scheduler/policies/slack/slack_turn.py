"""A turn under way, as the policy ``slack`` believes it to be."""

from __future__ import annotations

from dataclasses import dataclass, field

from aegaeon.scheduler.policies.slack.slack_job import SlackJob


@dataclass(slots=True, eq=False)
class SlackTurn:
    """``members``: the requests that were put into it and have not left it. ``tokens``: a bound on what each produces.

    ``prompt_s``: estimated time of its prompts that are still to be processed. ``ready_s``: when the weights are there.
    ``ending``: ``EndTurn`` was given, nobody may join any more.
    """

    turn_id: int
    instance_id: str
    model: str
    keeps_prefilled: bool
    tokens: int
    ready_s: float
    members: dict[str, SlackJob] = field(default_factory=dict)
    prompt_s: float = 0.0
    ending: bool = False

    @property
    def rows(self) -> int:
        """Of a step in which all its members decode."""
        return sum([member.width for member in self.members.values()])
