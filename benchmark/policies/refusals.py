"""Whether a full queue tells the truth: the wait that refused requests were told beside the one that there was.

``Retry-After`` says when those who wait now will have had their first token. What it came to is known afterwards: the
time until as many requests as waited had theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from aegaeon.core.command import Command, RejectReason, RejectRequest
from aegaeon.core.event import Event, RequestArrived, RequestPrefilled
from aegaeon.scheduler.scheduler import Scheduler


@dataclass(frozen=True, slots=True)
class Refusal:
    """At a time, with so many before it in the queue and so many first tokens before that."""

    at_s: float
    told_s: float
    queued: int
    served: int


@dataclass(slots=True)
class RefusalWatch:
    """A ``Scheduler`` that passes everything on and takes notes of one node's queue."""

    scheduler: Scheduler
    refusals: list[Refusal] = field(default_factory=list)
    _waiting: set[str] = field(default_factory=set)
    _served_s: list[float] = field(default_factory=list)

    def handle(self, event: Event, now_s: float) -> list[Command]:
        commands = self.scheduler.handle(event, now_s)
        if isinstance(event, RequestArrived):
            self._waiting.add(event.request.request_id)
        if isinstance(event, RequestPrefilled) and event.request_id in self._waiting:
            self._waiting.discard(event.request_id)
            self._served_s.append(now_s)
        for command in commands:
            if isinstance(command, RejectRequest):
                self._note(command, now_s)
        return commands

    def _note(self, command: RejectRequest, now_s: float) -> None:
        self._waiting.discard(command.request_id)
        if command.reason is RejectReason.OVERLOADED and command.retry_after_s is not None:
            self.refusals.append(Refusal(now_s, command.retry_after_s, len(self._waiting), len(self._served_s)))

    def waits_s(self) -> list[tuple[float, float]]:
        """(told, came to) of each refusal whose queue was served in the end."""
        ends = [(one, one.served + one.queued - 1) for one in self.refusals]
        return [(one.told_s, self._served_s[end] - one.at_s) for one, end in ends if end < len(self._served_s)]


def median_waits_s(watches: Sequence[RefusalWatch]) -> tuple[float, float]:
    """(told, came to), each the median over all refusals; zeros where nobody was refused."""
    waits = [wait for watch in watches for wait in watch.waits_s()]
    return (median(told for told, _ in waits), median(real for _, real in waits)) if waits else (0.0, 0.0)
