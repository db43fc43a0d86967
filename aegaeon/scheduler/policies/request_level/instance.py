"""A GPU of a baseline, and the jobs on it: it runs one model at a time, prompts first, with continuous batching."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import takewhile

from aegaeon.core.instance import InstanceSpec
from aegaeon.scheduler.job import Job
from aegaeon.scheduler.residency import Residency


@dataclass(slots=True, eq=False)
class QueueJob(Job):
    """A live request. ``instance``: where it waits or runs (None: homeless, or losing its KV).

    ``running``: in its turn. ``started``: it has had its first token. ``reported_s``: when ``context_tokens`` was last
    true.
    """

    instance: QueueInstance | None = None
    running: bool = False
    started: bool = False
    reported_s: float = 0.0

    @property
    def target_tokens(self) -> int:
        """The request's context at its end: known to an oracle, else the limit that the client gave."""
        new_tokens = self.request.oracle_new_tokens or self.request.max_new_tokens
        return self.request.prompt_tokens + new_tokens


@dataclass(slots=True, eq=False)
class QueueTurn:
    """A turn under way. ``ending``: ``EndTurn`` was given, nobody may join any more.

    ``switches``: it begins with the weights of its model being brought in.
    """

    turn_id: int
    model: str
    started_s: float
    switches: bool = False
    members: dict[str, QueueJob] = field(default_factory=dict)
    ending: bool = False


@dataclass(slots=True, eq=False)
class QueueGroup:
    """Waiting requests of one model that would run together, and what that takes beyond the switch."""

    jobs: list[QueueJob]
    prompts_s: float
    steps_s: float


@dataclass(slots=True, eq=False)
class QueueInstance:
    """An instance with its queue (those that are not in the turn), its turn, and what it did before.

    ``model``: what it ran last, or runs. ``jobs`` counts those placed here by model. ``kept``: those in no turn whose
    KV is still on the device. ``progress_s``: when a prompt, a request or a turn was last done here; 0 before that.
    ``groups``: by model, how a strategy cut the queue; forgotten where the model's part of the queue changes.
    """

    spec: InstanceSpec
    joined: int
    residency: Residency
    queue: dict[str, QueueJob] = field(default_factory=dict)
    turn: QueueTurn | None = None
    model: str | None = None
    jobs: Counter[str] = field(default_factory=Counter)
    kept: dict[str, QueueJob] = field(default_factory=dict)
    progress_s: float = 0.0
    groups: dict[str, list[QueueGroup]] = field(default_factory=dict)
    _tail: tuple[str | None, int] | None = None  # None: to be looked up again

    @property
    def instance_id(self) -> str:
        return self.spec.instance_id

    @property
    def load(self) -> int:
        """Requests that wait or run here."""
        return self.jobs.total()

    @property
    def tail(self) -> tuple[str | None, int]:
        """The model whose requests are last here, and how many of them there are in a row; else what it ran last."""
        if self._tail is None:
            self._tail = self._find_tail()
        return self._tail

    def _find_tail(self) -> tuple[str | None, int]:
        last_first = self._last_first()
        last = next(last_first, None)
        if last is None:
            return self.model, 0
        return last.model, 1 + sum(1 for _ in takewhile(lambda job: job.model == last.model, last_first))

    def _last_first(self) -> Iterator[QueueJob]:
        yield from reversed(self.queue.values())
        if self.turn is not None:
            yield from reversed(self.turn.members.values())

    def can_hold(self, job: QueueJob) -> bool:
        """Whether the job's model and its longest context fit this GPU."""
        return job.facts.weight_bytes <= self.spec.weight_bytes and job.max_kv_bytes <= self.spec.kv_bytes

    def enqueue(self, job: QueueJob) -> None:
        """Place a job at the end of the queue."""
        self.queue[job.request_id] = job
        self.jobs[job.model] += 1
        job.instance = self
        self._note_change(job.model)

    def remove(self, job: QueueJob) -> None:
        """Take a job of this GPU out of its queue or its turn."""
        self.queue.pop(job.request_id, None)
        self.kept.pop(job.request_id, None)
        self.leave_turn(job)
        self.jobs[job.model] -= 1
        if not self.jobs[job.model]:
            del self.jobs[job.model]
        job.instance = None
        self._note_change(job.model)

    def enter(self, turn: QueueTurn, jobs: Iterable[QueueJob]) -> None:
        """Waiting jobs become members of the turn."""
        for job in jobs:
            del self.queue[job.request_id]
            turn.members[job.request_id] = job
            job.running = True
            self._note_change(job.model)

    def leave_turn(self, job: QueueJob) -> None:
        """It is no member of the turn (any more)."""
        if job.running and self.turn is not None:
            del self.turn.members[job.request_id]
        job.running = False

    def end_turn(self) -> None:
        """The turn is over: its members wait again, before all others."""
        assert self.turn is not None, f"{self.instance_id} has no turn to end"
        members, model = self.turn.members, self.turn.model
        for job in members.values():
            job.running = False
        self.queue = members | self.queue
        self.turn = None
        self._note_change(model)

    def _note_change(self, model: str) -> None:
        self._tail = None
        self.groups.pop(model, None)
