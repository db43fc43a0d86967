"""Whose prompt may begin where the slab cache may be full.

While there is room everybody may. The first who does not fit closes the gate: nobody else is asked until KV has been
freed, and then it goes in before anybody else. Nobody waits for one that is late, though, for its model may not have a
turn for long: each time KV has been freed, whoever is asked first may try. One that holds KV already always may.

So a full cache costs a decision one question, however many wait.

Does not know: which model is urgent, what a device holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from aegaeon.core.instance import Role
from aegaeon.scheduler.slab_budget import SlabBudget
from aegaeon.scheduler.slack.agenda import Agenda
from aegaeon.scheduler.slack.instance import Instance
from aegaeon.scheduler.slack.member import Member
from aegaeon.scheduler.slack.model_state import ModelState


class PromptGate:
    """Books prompts in ``slabs``; ``instances`` and ``agenda`` tell whether anything could free KV."""

    def __init__(self, slabs: SlabBudget, instances: Mapping[str, Instance], agenda: Agenda) -> None:
        self._slabs = slabs
        self._instances = instances
        self._agenda = agenda
        self._full = False  # somebody did not fit, and nothing has been freed since
        self._first: Member | None = None  # who goes in before anybody else
        self._begun: dict[str, Member] = {}  # they hold KV, and wait for another turn to process their prompts

    def closed(self, now_s: float) -> bool:
        """Whether only those may begin who are ``preferred``."""
        first = self._first
        if first is not None and first.request.slo.due_s(first.request.arrival_s, 0) < now_s:
            self._first = None
        return (self._full or self._first is not None) and not self._quiet()

    def preferred(self) -> list[Member]:
        """Who may begin though the gate is closed, or is the first to try."""
        first = [self._first] if self._first is not None and not self._full else []
        return [*self._begun.values(), *first]

    def candidates(self, model: ModelState, now_s: float) -> Iterator[Member]:
        """Those of a model who may ask to begin, the most urgent first; ends where the gate closes meanwhile."""
        for member in model.waiting.urgent_first(now_s):
            if self.closed(now_s):
                break
            yield member
        else:
            return
        yield from (member for member in self.preferred() if member.model == model.name and member.turn_id is None)

    def admits(self, member: Member) -> bool:
        """Whether a candidate's prompt may begin; the gate closes where its KV does not fit."""
        if member.request_id in self._slabs:
            return True
        if self._first is None or self._first is member:
            if not self._full and self._slabs.has_room(member):
                return True
            self._full, self._first = True, member
        return self._quiet()

    def enter(self, member: Member) -> None:
        """The member takes part in a turn that processes its prompt: its KV counts from now on."""
        self._slabs.reserve(member)
        self.leave(member)

    def wait(self, member: Member) -> None:
        """The member waits for a turn."""
        if not member.decodes and member.request_id in self._slabs:
            self._begun[member.request_id] = member

    def leave(self, member: Member) -> None:
        """The member waits no more."""
        self._begun.pop(member.request_id, None)
        if self._first is member:
            self._first = None

    def release(self, member: Member) -> bool:
        """The member's KV is free, if it had any; returns whether somebody may have waited for that."""
        waited = self._full or self._first is not None
        self._full = self._full and member.request_id not in self._slabs
        self._slabs.release(member)
        return waited

    def _quiet(self) -> bool:
        """Whether nothing runs or could run that would free KV; waiting for it would be waiting for ever."""
        if self._slabs.dropping or self._agenda.has_work(Role.DECODE):
            return False
        return not any(instance.turn and instance.turn.members for instance in self._instances.values())
