"""The policy ``aegaeon``: token-level scheduling of many models on few instances, as published.

Grouped first-come-first-served prefill, weighted round-robin decode, prefetch of the next different model (Aegaeon,
SOSP'25). Of the project: mixed instances, residency sets of any size, admission, recompute when the slab cache is
full, and recovery. Every event first corrects what is known of requests and instances; then each instance that this
touched is looked at once and its turn brought up to date. Looking at another would say nothing, for its turn is up to
date already, unless a prompt waits somewhere for room in the slab cache: then all are looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter

from aegaeon.core.command import EvictKv, EvictWeights
from aegaeon.core.cost import CostModel
from aegaeon.core.event import RequestPrefilled, TurnEnded
from aegaeon.core.instance import InstanceSpec
from aegaeon.core.model import ModelSpec
from aegaeon.core.request import Request
from aegaeon.scheduler.facts import PolicyFacts
from aegaeon.scheduler.job import JobPhase
from aegaeon.scheduler.limits import PoolLimits
from aegaeon.scheduler.policies.paper.batch import Batch
from aegaeon.scheduler.policies.paper.decode_placement import DecodePlacement
from aegaeon.scheduler.policies.paper.group import Group
from aegaeon.scheduler.policies.paper.paper_instance import PaperInstance
from aegaeon.scheduler.policies.paper.paper_job import PaperJob
from aegaeon.scheduler.policies.paper.prefill_placement import PrefillPlacement
from aegaeon.scheduler.policies.paper.turn_planner import TurnPlanner
from aegaeon.scheduler.shell import PolicyShell


class AegaeonScheduler(PolicyShell[PaperJob, PaperInstance]):
    """A ``Scheduler``; see the module docstring and the contract in ``aegaeon.scheduler.scheduler``."""

    def __init__(self, models: Sequence[ModelSpec], costs: CostModel, limits: PoolLimits) -> None:
        super().__init__(models, limits)
        self._homeless: dict[str, PaperJob] = {}  # no live instance takes them
        self._prefill = PrefillPlacement(self._instances, costs, limits.max_group_requests)
        self._decode = DecodePlacement(self._instances)
        self._planner = TurnPlanner(self._jobs, self._instances, self._prefill, self._slabs, costs, limits)
        self._touched: dict[str, None] = {}  # instances that the present event changed
        self._look_at_all = False

    def _begin(self) -> None:
        self._touched.clear()

    def _decide(self) -> None:
        refusals = self._slabs.refusals
        for instance in self._due():
            self._planner.advance(instance, self._now_s, self._out)
        self._look_at_all = self._slabs.refusals > refusals

    def _due(self) -> list[PaperInstance]:
        """The instances to look at, in order of joining."""
        if self._look_at_all:
            return list(self._instances.values())
        found = [self._instances[name] for name in self._touched if name in self._instances]
        return sorted(found, key=attrgetter("joined")) if len(found) > 1 else found

    def _touch(self, job: PaperJob) -> None:
        """What the job's group or batch is about to be, or has become, changes its instance."""
        if job.group is not None:
            self._touched[job.group.instance_id] = None
        if job.batch is not None:
            self._touched[job.batch.instance_id] = None

    def _pool_changes(self) -> None:
        self._look_at_all = True

    # -- requests

    def _new_job(self, request: Request, facts: PolicyFacts, order: tuple[float, int]) -> PaperJob:
        return PaperJob(request, facts, order, request.prompt_tokens)

    def _arrived(self, job: PaperJob) -> None:
        if self._prefill.place(job, self._now_s):
            self._touch(job)
        else:
            self._homeless[job.request_id] = job

    @property
    def _queued(self) -> int:
        return len(self._homeless) + self._prefill.waiting

    def _queue_s(self) -> float:
        """The time that the prefill instances need for what waits, were it shared out evenly."""
        drains_s = self._prefill.drains_s()
        return sum(drains_s) / len(drains_s) if drains_s else 0.0

    def _prefilled(self, job: PaperJob, event: RequestPrefilled) -> None:
        turn = job.turn
        if turn is None or turn.turn_id != event.turn_id:
            job.context_tokens = max(job.context_tokens, event.context_tokens)  # its KV was dropped meanwhile
            return
        job.phase = JobPhase.DECODING
        self._drain.leave(self._now_s)
        self._grow(job, event.context_tokens)
        if isinstance(turn.source, Group):
            self._touch(job)
            self._leave_turn(job)
            self._prefill.withdraw(job)
            self._place(job)

    def _takes_part(self, job: PaperJob, turn_id: int) -> bool:
        return job.turn is not None and job.turn.turn_id == turn_id

    def _place(self, job: PaperJob) -> None:
        """A job that no instance takes waits for one to join."""
        waiting = job.phase is JobPhase.WAITING
        placed = self._prefill.replace(job, self._now_s) if waiting else self._decode.place(job)
        self._touch(job)
        if not placed:
            self._homeless[job.request_id] = job
            self._slabs.pass_over(job)

    def _grow(self, job: PaperJob, context_tokens: int) -> None:
        super()._grow(job, context_tokens)
        if job.batch is not None:
            self._touch(job)
            job.batch.put(job.request_id, job.kv_bytes, job.width)

    def _leave_turn(self, job: PaperJob) -> None:
        if job.turn is not None:
            self._touched[job.turn.source.instance_id] = None
            del job.turn.members[job.request_id]
            job.turn = None

    def _withdraw(self, job: PaperJob) -> None:
        """Take a job out of its turn, group or batch, or from among the homeless."""
        self._touch(job)
        if job.batch is not None:
            self._instances[job.batch.instance_id].kept.pop(job.request_id, None)
        self._leave_turn(job)
        self._prefill.withdraw(job)
        self._decode.withdraw(job)
        self._homeless.pop(job.request_id, None)

    # -- turns

    def _turn_ended(self, instance: PaperInstance, event: TurnEnded) -> list[PaperJob]:
        self._touched[instance.instance_id] = None
        turn, instance.turn = instance.turn, None
        assert turn is not None, f"{instance.instance_id} has no turn to end"
        instance.prefilled_last = isinstance(turn.source, Group)
        for request_id, context_tokens in event.contexts:
            if request_id in self._jobs:
                self._grow(self._jobs[request_id], context_tokens)
        members = [self._jobs[request_id] for request_id in turn.members]
        self._settle_kv(instance, members)
        for job in members:
            self._settle(job)
        return members

    def _settle_kv(self, instance: PaperInstance, members: list[PaperJob]) -> None:
        """The KV of a batch stays on the device until the next turn needs the room; that of prompts goes at once."""
        instance.kept.update((job.request_id, job.kv_bytes) for job in members if job.phase is JobPhase.DECODING)
        prompts = tuple(job.request_id for job in members if job.phase is JobPhase.WAITING)
        if prompts:
            self._out.append(EvictKv(instance.instance_id, prompts))

    def _settle(self, job: PaperJob) -> None:
        """A member that was to be prefilled beside a batch goes back to wait for its own turn."""
        self._leave_turn(job)
        if job.phase is JobPhase.WAITING and job.batch is not None:
            self._touch(job)
            self._decode.withdraw(job)
            self._place(job)

    def _evict_weights(self, instance: PaperInstance, model: str) -> None:
        if model in instance.residency:
            instance.residency.discard(model)
            self._out.append(EvictWeights(instance.instance_id, model))

    # -- the pool

    def _joined(self, spec: InstanceSpec) -> None:
        self._instances[spec.instance_id] = PaperInstance.of(spec, next(self._joins), self._facts)
        homeless = sorted(self._homeless.values(), key=attrgetter("order"))
        self._homeless.clear()
        for job in self._reject_misfits(homeless):
            self._place(job)

    def _lost(self, instance: PaperInstance, survivors: Mapping[str, int]) -> None:
        jobs = self._evacuate(instance)
        del self._instances[instance.instance_id]
        for job in jobs:
            took_part = job.turn is not None
            self._leave_turn(job)
            if job.request_id in survivors:
                self._grow(job, survivors[job.request_id])
            elif took_part:
                self._drop(job)
        for job in jobs:
            if job.phase is not JobPhase.DROPPING:
                self._place(job)

    def _evacuate(self, instance: PaperInstance) -> list[PaperJob]:
        """Take all jobs out of the instance's groups and batches; returns them by arrival."""
        sources: list[Group | Batch] = [*instance.prefill, *instance.decode]
        jobs = sorted((self._jobs[name] for source in sources for name in source.members), key=attrgetter("order"))
        for job in jobs:
            self._prefill.withdraw(job)
            self._decode.withdraw(job)
        return jobs
