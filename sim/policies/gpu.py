"""A GPU of a baseline: it runs one model at a time, prompts first, with continuous batching.

Does not know: policies, time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from aegaeon.core.instance import InstanceSpec
from aegaeon.scheduler.residency import Residency
from sim.policies.job import PlacedJob


@dataclass(slots=True, eq=False)
class Run:
    """A turn under way. ``ending``: ``EndTurn`` was given, nobody may join any more."""

    turn_id: int
    model: str
    members: dict[str, PlacedJob] = field(default_factory=dict)
    ending: bool = False


@dataclass(slots=True, eq=False)
class Gpu:
    """Its queue (those that are not in the run), its run, and what it did before.

    ``model``: what it ran last, or runs. ``jobs`` counts those placed here by model. ``kept``: those in no run whose KV
    is still on the device. ``progress_s``: when a prompt, a request or a run was last done here; 0 before the first.
    """

    spec: InstanceSpec
    joined: int
    residency: Residency
    queue: dict[str, PlacedJob] = field(default_factory=dict)
    run: Run | None = None
    model: str | None = None
    jobs: Counter[str] = field(default_factory=Counter)
    kept: dict[str, PlacedJob] = field(default_factory=dict)
    progress_s: float = 0.0

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
        last_first = self._last_first()
        last = next(last_first, None)
        if last is None:
            return self.model, 0
        count = 1
        for job in last_first:
            if job.model != last.model:
                break
            count += 1
        return last.model, count

    def _last_first(self) -> Iterator[PlacedJob]:
        yield from reversed(self.queue.values())
        if self.run is not None:
            yield from reversed(self.run.members.values())

    def can_hold(self, job: PlacedJob) -> bool:
        """Whether the job's model and its longest context fit this GPU."""
        return job.facts.weight_bytes <= self.spec.weight_bytes and job.max_kv_bytes <= self.spec.kv_bytes

    def enqueue(self, job: PlacedJob) -> None:
        """Place a job at the end of the queue."""
        self.queue[job.request_id] = job
        self.jobs[job.model] += 1
        job.gpu = self

    def remove(self, job: PlacedJob) -> None:
        """Take a job of this GPU out of its queue or its run."""
        self.queue.pop(job.request_id, None)
        self.kept.pop(job.request_id, None)
        self.leave_run(job)
        self.jobs[job.model] -= 1
        if not self.jobs[job.model]:
            del self.jobs[job.model]
        job.gpu = None

    def leave_run(self, job: PlacedJob) -> None:
        """It is no member of the run (any more)."""
        if job.running and self.run is not None:
            del self.run.members[job.request_id]
        job.running = False

    def requeue(self, jobs: list[PlacedJob]) -> None:
        """Members of a run that ended wait again, before all others."""
        self.queue = {job.request_id: job for job in jobs} | self.queue
