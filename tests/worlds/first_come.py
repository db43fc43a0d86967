"""A policy in one file, to show what one needs: requests run alone, in order of arrival, on whoever is idle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from operator import attrgetter

from aegaeon.core.command import EvictKv, EvictWeights, StartTurn
from aegaeon.core.cost import CostModel
from aegaeon.core.event import RequestPrefilled, TurnEnded
from aegaeon.core.instance import InstanceSpec, Role
from aegaeon.core.model import ModelSpec
from aegaeon.core.request import Request
from aegaeon.scheduler.facts import PolicyFacts
from aegaeon.scheduler.job import Job, JobPhase
from aegaeon.scheduler.layout import Layout, PlacedInstance, PoolSpec, Rooms, decided_layout
from aegaeon.scheduler.limits import PoolLimits
from aegaeon.scheduler.policy import LineStyle, Policy
from aegaeon.scheduler.residency import Residency
from aegaeon.scheduler.shell import PolicyShell


@dataclass(slots=True, eq=False)
class LoneTurn:
    """A turn of one request; ``job`` is None once it has left."""

    turn_id: int
    model: str
    job: Job | None


@dataclass(slots=True, eq=False)
class LoneInstance:
    spec: InstanceSpec
    residency: Residency
    turn: LoneTurn | None = None


class FirstComeScheduler(PolicyShell[Job, LoneInstance]):
    def __init__(
        self, models: Sequence[ModelSpec], _costs: CostModel, limits: PoolLimits, _instances: Sequence[PlacedInstance]
    ) -> None:
        super().__init__(models, limits)
        self._queue: dict[str, Job] = {}
        self._turn_ids = count(1)

    def _begin(self) -> None:
        return

    def _decide(self) -> None:
        for instance in self._instances.values():
            if instance.turn is None:
                self._start(instance)

    def _start(self, instance: LoneInstance) -> None:
        quiet = not self._slabs.dropping and all(one.turn is None for one in self._instances.values())
        for job in sorted(self._queue.values(), key=attrgetter("order")):
            fits = job.max_kv_bytes <= instance.spec.kv_bytes and job.facts.weight_bytes <= instance.spec.weight_bytes
            if fits and (self._slabs.admits(job) or quiet):
                del self._queue[job.request_id]
                self._slabs.reserve(job)
                self._run(instance, job)
                return

    def _run(self, instance: LoneInstance, job: Job) -> None:
        for model in instance.residency.admit(job.model) or ():
            self._out.append(EvictWeights(instance.spec.instance_id, model))
        instance.turn = turn = LoneTurn(next(self._turn_ids), job.model, job)
        prefill, decode = ((job.request_id,), ()) if job.phase is JobPhase.WAITING else ((), (job.request_id,))
        self._out.append(
            StartTurn(instance.spec.instance_id, turn.turn_id, job.model, prefill, decode, None, keep_prefilled=True)
        )

    def _new_job(self, request: Request, facts: PolicyFacts, order: tuple[float, int]) -> Job:
        return Job(request, facts, order, request.prompt_tokens)

    def _arrived(self, job: Job) -> None:
        self._place(job)

    @property
    def _queued(self) -> int:
        return len(self._queue)

    def _queue_s(self) -> float:
        return 0.0

    def _place(self, job: Job) -> None:
        self._queue[job.request_id] = job

    def _prefilled(self, job: Job, event: RequestPrefilled) -> None:
        if self._takes_part(job, event.turn_id):
            job.phase = JobPhase.DECODING
            self._drain.leave(self._now_s)
        self._grow(job, event.context_tokens)

    def _takes_part(self, job: Job, turn_id: int) -> bool:
        turns = (instance.turn for instance in self._instances.values())
        return any(turn is not None and turn.turn_id == turn_id and turn.job is job for turn in turns)

    def _withdraw(self, job: Job) -> None:
        self._queue.pop(job.request_id, None)
        for instance in self._instances.values():
            if instance.turn is not None and instance.turn.job is job:
                instance.turn.job = None

    def _turn_ended(self, instance: LoneInstance, event: TurnEnded) -> list[Job]:
        turn, instance.turn = instance.turn, None
        members = [turn.job] if turn is not None and turn.job is not None else []
        for job in members:
            self._grow(job, dict(event.contexts).get(job.request_id, 0))
            self._out.append(EvictKv(instance.spec.instance_id, (job.request_id,)))
            self._place(job)
        return members

    def _joined(self, spec: InstanceSpec) -> None:
        self._instances[spec.instance_id] = LoneInstance(spec, Residency(spec, self._facts))
        self._reject_misfits(list(self._queue.values()))

    def _lost(self, instance: LoneInstance, survivors: Mapping[str, int]) -> None:
        del self._instances[instance.spec.instance_id]
        job = instance.turn.job if instance.turn is not None else None
        if job is not None and job.request_id in survivors:
            self._grow(job, survivors[job.request_id])
            self._place(job)
        elif job is not None:
            self._drop(job)

    def _evict_weights(self, instance: LoneInstance, model: str) -> None:
        if model in instance.residency:
            instance.residency.discard(model)
            self._out.append(EvictWeights(instance.spec.instance_id, model))


def _layout(pool: PoolSpec, models: Sequence[ModelSpec], *_: object) -> Layout:
    """One model at a time, KV in what it leaves."""
    largest_bytes = max(model.weight_bytes for model in models)
    devices = tuple(
        replace(device, rooms=Rooms(largest_bytes, device.memory_bytes - largest_bytes, 1)) for device in pool.devices
    )
    return decided_layout(replace(pool, devices=devices, roles=(Role.MIXED,) * len(devices)), models)


POLICY = Policy(
    "first-come",
    "first come, first served",
    _layout,
    FirstComeScheduler,
    LineStyle("#000000", "."),
    frozenset({Role.MIXED}),
)
