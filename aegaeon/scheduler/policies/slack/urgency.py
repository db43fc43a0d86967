"""When a model's next turn must begin, and which of two models goes first.

The priority of a model is an apparent tardiness cost (Vepsalainen and Morton, Management Science 1987) summed over the
requests that would ride along in its turn, over what a step costs::

    I = sum_i w_i * exp(-max(s_i, 0) / K) / step          w_i = typical / (typical + tokens so far)
    key = now - K * ln (I * (1 + fairness * max(missed - tolerated, 0)^2))   tolerated = max(0.2, 1.5 * missed of all)

``s_i`` is the slack of request i: the time until work on its next token must begin. With one request this is its due
time; with several critical ones the model goes earlier the more it can save for the cost of its steps, which is what
counts when not everyone can be saved. ``w_i`` is the worth of a token of a request: its share of the request, the
smaller the longer the request turns out to be. One that is late counts ``1 + s_i / recover`` down to nothing: the more
it must catch up the less a turn gains. ``missed`` is the share of what the model's members were owed that came late
(``account.py``): who yields is decided by what is gained in all, until one model has yielded too often. What is
``tolerated`` changes nothing; beyond it a model soon goes before all others, so that what it lost it makes up for by
not losing the next. In an overload everybody loses, and then only those who lose far more than others are to make up
for it. The order of keys stays what it is while nobody becomes late.
"""

from __future__ import annotations

import math

from aegaeon.core.cost import CostModel
from aegaeon.core.instance import Role
from aegaeon.scheduler.policies.slack.due_queue import DueQueue
from aegaeon.scheduler.policies.slack.slack_job import SlackJob
from aegaeon.scheduler.policies.slack.slack_model import SlackModel
from aegaeon.scheduler.policies.slack.tuning import Tuning
from aegaeon.scheduler.prompt_cost import prompt_s

_NEVER = math.inf
_MOST_MEMBERS = 16  # whose slack is looked at; those that follow are due later still


class Urgency:
    """Computes keys; smaller is more urgent. Times in seconds."""

    def __init__(self, costs: CostModel, tuning: Tuning, typical_step_s: float) -> None:
        self._costs = costs
        self._tuning = tuning
        self._typical_step_s = typical_step_s

    def key_s(self, model: SlackModel, now_s: float, role: Role = Role.MIXED) -> float:
        """Priority at ``now_s`` (see the module docstring)."""
        if not self._tuning.horizon_s:
            return self._latest_start_s(model, now_s, role)
        index = sum([self._worth(member, now_s) for member in self._counting(model, now_s, role)])
        index *= (self._typical_step_s / model.step_s) * (1.0 + self._tuning.fairness * self._excess(model) ** 2)
        if index <= 0.0:  # nobody's turn gains anything, or so much later that it is too little for a number
            return self._when_patience_ends_s(model, role)
        return now_s - self._tuning.horizon_s * math.log(index)

    def _excess(self, model: SlackModel) -> float:
        """The share that the model missed beyond what is tolerated."""
        tuning = self._tuning
        tolerated = max(tuning.tolerated_share, tuning.tolerated_multiple * model.of_all.missed_share)
        return max(0.0, model.account.missed_share - tolerated)

    def note(self, member: SlackJob, step_s: float) -> None:
        """The member begins to wait: note what stays as it is until it is in a turn. ``step_s``: of its model."""
        typical, produced = self._tuning.typical_tokens, member.context_tokens - member.request.prompt_tokens
        member.weight = typical / (typical + produced)
        unit_s = step_s if member.decodes else prompt_s(self._costs, member)
        member.start_s = member.due_s - unit_s

    def _latest_start_s(self, model: SlackModel, now_s: float, role: Role = Role.MIXED) -> float:
        """When the next turn must begin so that nobody who is on time becomes late.

        Where everybody is late: when the model has waited for ``patience_s``. Infinite where nothing can be done.
        """
        starts_s = [member.start_s for member in self._first_due(model, now_s, role)]
        return min(starts_s) if starts_s else self._when_patience_ends_s(model, role)

    def _worth(self, member: SlackJob, now_s: float) -> float:
        slack_s = member.start_s - now_s
        if slack_s >= 0.0:
            return member.weight * math.exp(-slack_s / self._tuning.horizon_s)
        recover_s = self._tuning.recover_s
        return member.weight * max(0.0, 1.0 + slack_s / recover_s) if recover_s else 0.0

    def _counting(self, model: SlackModel, now_s: float, role: Role) -> list[SlackJob]:
        since_s = now_s - self._tuning.recover_s
        return [member for queue in _queues(model, role) for member in queue.due_from(since_s, _MOST_MEMBERS)]

    def _first_due(self, model: SlackModel, now_s: float, role: Role) -> list[SlackJob]:
        return [member for queue in _queues(model, role) for member in queue.due_from(now_s, 1)]

    def _when_patience_ends_s(self, model: SlackModel, role: Role) -> float:
        late_s = [queue.first.due_s for queue in _queues(model, role)]
        return max(model.served_s, min(late_s)) + self._tuning.patience_s if late_s else _NEVER


def _queues(model: SlackModel, role: Role) -> list[DueQueue]:
    prompts = [model.waiting] if role.prefills and model.waiting else []
    return [*prompts, model.decoding] if role.decodes and model.decoding else prompts
