"""Whose prompt may begin where the slab cache may be full.

While there is room everybody may. Who does not fit is not asked again before KV has been freed, and once some have not,
nobody is: the gate is closed. Then whoever is most urgent where a device is free may try. There is no queue for KV: the
model of one that has waited for long may not have a turn for long, and everybody behind it would become late too. One
that holds KV already may always begin.

So a full cache costs a decision few questions, however many wait.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from aegaeon.core.instance import Role
from aegaeon.scheduler.policies.slack.agenda import Agenda
from aegaeon.scheduler.policies.slack.slack_instance import SlackInstance
from aegaeon.scheduler.policies.slack.slack_job import SlackJob
from aegaeon.scheduler.policies.slack.slack_model import SlackModel
from aegaeon.scheduler.slab_budget import SlabBudget

_MOST_REFUSED = 16  # before nobody else is asked


class PromptGate:
    """Books prompts in ``slabs``; ``instances`` and ``agenda`` tell whether anything could free KV."""

    def __init__(self, slabs: SlabBudget, instances: Mapping[str, SlackInstance], agenda: Agenda) -> None:
        self._slabs = slabs
        self._instances = instances
        self._agenda = agenda
        self._refused: set[str] = set()  # they did not fit, and nothing has been freed since; only asked for membership
        self._begun: dict[str, SlackJob] = {}  # they hold KV, and wait for another turn to process their prompts

    @property
    def closed(self) -> bool:
        """Whether nobody may begin but those who have ``begun``."""
        return len(self._refused) >= _MOST_REFUSED and not self._quiet()

    @property
    def begun(self) -> list[SlackJob]:
        """The members who wait and hold KV."""
        return list(self._begun.values())

    def candidates(self, model: SlackModel, now_s: float) -> Iterator[SlackJob]:
        """The members of a model who may ask to begin, the most urgent first; ends where the gate closes meanwhile."""
        for member in model.waiting.urgent_first(now_s):
            if self.closed:
                break
            yield member
        else:
            return
        yield from (member for member in self.begun if member.model == model.name and member.turn_id is None)

    def admits(self, member: SlackJob) -> bool:
        """Whether a candidate's prompt may begin."""
        name = member.request_id
        if name in self._slabs or (name not in self._refused and self._slabs.has_room(member)):
            return True
        self._refused.add(name)
        return self._quiet()

    def enter(self, member: SlackJob) -> None:
        """The member takes part in a turn that processes its prompt: its KV counts from now on."""
        self._slabs.reserve(member)
        self.leave(member)

    def wait(self, member: SlackJob) -> None:
        """The member waits for a turn."""
        if not member.decodes and member.request_id in self._slabs:
            self._begun[member.request_id] = member

    def leave(self, member: SlackJob) -> None:
        """The member waits no more."""
        self._begun.pop(member.request_id, None)

    def release(self, member: SlackJob) -> bool:
        """The member's KV is free, if it had any; returns whether somebody may have waited for that."""
        waited = bool(self._refused)
        if member.request_id in self._slabs:
            self._refused.clear()
        self._slabs.release(member)
        return waited

    def _quiet(self) -> bool:
        """Whether nothing runs or could run that would free KV; waiting for it would be waiting for ever."""
        if self._slabs.dropping or self._agenda.has_work(Role.DECODE):
            return False
        return not any(instance.turn and instance.turn.members for instance in self._instances.values())
