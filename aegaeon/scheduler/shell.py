"""What every policy does alike: it is told of requests, instances and models, and keeps account of them.

    event -> note it (here) -> hooks (the policy's: place, withdraw, prefilled, turn_ended, ...) -> decide -> commands

Here are the table of requests, admission, refusals, failed models and turns, and the way out of a full slab cache. A
policy says where requests go and what runs next. It never sees the clock; the time comes with each event.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from typing import Generic, Protocol, TypeVar, assert_never

from aegaeon.core.command import Command, DropKv, RejectReason, RejectRequest, ReleaseRequest
from aegaeon.core.event import (
    Event,
    InstanceJoined,
    InstanceLost,
    KvDropped,
    KvExhausted,
    ModelFailed,
    ModelRecovered,
    RequestArrived,
    RequestCancelled,
    RequestFailed,
    RequestFinished,
    RequestPrefilled,
    TurnEnded,
    TurnEndReason,
    WeightsFetched,
)
from aegaeon.core.instance import InstanceSpec
from aegaeon.core.model import ModelSpec
from aegaeon.core.request import Request
from aegaeon.scheduler.admission import misfit, most_kv_bytes, overload, unknown_model
from aegaeon.scheduler.drain import Drain
from aegaeon.scheduler.facts import PolicyFacts, model_facts
from aegaeon.scheduler.job import Job, JobPhase
from aegaeon.scheduler.limits import PoolLimits
from aegaeon.scheduler.slab_budget import SlabBudget


class TurnUnderWay(Protocol):
    """What the shell sees of a policy's turn."""

    @property
    def turn_id(self) -> int: ...

    @property
    def model(self) -> str: ...


class FollowedInstance(Protocol):
    """What the shell sees of a policy's instance."""

    @property
    def spec(self) -> InstanceSpec: ...

    @property
    def turn(self) -> TurnUnderWay | None: ...


JobT = TypeVar("JobT", bound=Job)
InstanceT = TypeVar("InstanceT", bound=FollowedInstance)

_OfRequest = RequestPrefilled | RequestFinished | RequestFailed | RequestCancelled | KvExhausted | KvDropped
_OfPool = InstanceJoined | InstanceLost | ModelFailed | ModelRecovered


class PolicyShell(ABC, Generic[JobT, InstanceT]):
    """A ``Scheduler`` (see the contract in ``aegaeon.scheduler.scheduler``) but for what makes a policy."""

    def __init__(self, models: Sequence[ModelSpec], limits: PoolLimits) -> None:
        self._limits = limits
        self._facts = model_facts(models)
        self._jobs: dict[str, JobT] = {}
        self._instances: dict[str, InstanceT] = {}  # in order of joining
        self._failures: dict[str, str] = {}  # failed models and why
        self._slabs = SlabBudget(limits)
        self._drain = Drain()  # of those who are queued
        self._arrivals = count()
        self._joins = count()
        self._room_bytes: dict[str, float] = {}  # by model: the longest context in KV bytes that some instance can hold
        self._now_s = 0.0
        self._out: list[Command] = []

    def handle(self, event: Event, now_s: float) -> list[Command]:
        self._now_s, self._out = now_s, []
        self._begin()
        self._note(event)
        self._decide()
        return self._out

    # -- what makes a policy

    @abstractmethod
    def _begin(self) -> None:
        """Forget what the last event touched."""

    @abstractmethod
    def _decide(self) -> None:
        """All is noted: say what is to be done."""

    @abstractmethod
    def _new_job(self, request: Request, facts: PolicyFacts, order: tuple[float, int]) -> JobT: ...

    @abstractmethod
    def _arrived(self, job: JobT) -> None:
        """A request was let in: it waits from now on."""

    @property
    @abstractmethod
    def _queued(self) -> int:
        """Requests that wait for their first turn."""

    @abstractmethod
    def _queue_s(self) -> float:
        """What those who are queued take by the costs, as if nothing else ran; seconds, 0 where nobody can say."""

    @abstractmethod
    def _prefilled(self, job: JobT, event: RequestPrefilled) -> None: ...

    @abstractmethod
    def _takes_part(self, job: JobT, turn_id: int) -> bool:
        """Whether the job is a member of the turn."""

    @abstractmethod
    def _place(self, job: JobT) -> None:
        """Find a place for a job that has none, and was here before."""

    @abstractmethod
    def _withdraw(self, job: JobT) -> None:
        """Take a job out of wherever it is."""

    @abstractmethod
    def _turn_ended(self, instance: InstanceT, event: TurnEnded) -> list[JobT]:
        """The instance's turn is over; returns its members, which wait again."""

    @abstractmethod
    def _joined(self, spec: InstanceSpec) -> None: ...

    @abstractmethod
    def _lost(self, instance: InstanceT, survivors: Mapping[str, int]) -> None:
        """``survivors``: context tokens in the slab cache of members of its turn; what others computed is lost."""

    @abstractmethod
    def _evict_weights(self, instance: InstanceT, model: str) -> None:
        """A model failed: take it off the instance, if it is there."""

    def _pool_changes(self) -> None:
        """Instances or models come or go."""
        return

    def _model_failed(self, model: str) -> None:
        """Its requests are rejected next."""
        return

    def _weights_fetched(self, model: str) -> None:
        """A policy that does not ask for it need not know: whatever is used is read when it is not there."""
        return

    def _hosts(self, model: str) -> list[InstanceSpec]:
        """Instances that may ever run a model."""
        return [instance.spec for instance in self._instances.values()]

    # -- events

    def _note(self, event: Event) -> None:
        match event:
            case RequestArrived():
                self._note_arrival(event.request, event.found_tokens)
            case (
                RequestPrefilled()
                | RequestFinished()
                | RequestFailed()
                | RequestCancelled()
                | KvExhausted()
                | KvDropped()
            ):
                job = self._jobs.get(event.request_id)
                if job is not None:  # else the event crossed a command that ended the request
                    self._note_of_request(job, event)
            case TurnEnded():
                self._note_turn_ended(event)
            case WeightsFetched():
                self._weights_fetched(event.model)
            case InstanceJoined() | InstanceLost() | ModelFailed() | ModelRecovered():
                self._room_bytes.clear()
                self._pool_changes()
                self._note_of_pool(event)
            case _:
                assert_never(event)

    def _note_of_request(self, job: JobT, event: _OfRequest) -> None:
        match event:
            case RequestPrefilled():
                self._prefilled(job, event)
            case RequestFinished() | RequestFailed():
                self._over(job)
            case RequestCancelled():
                self._forget(job)
                self._out.append(ReleaseRequest(job.request_id))
            case KvExhausted():
                self._exhausted(job, event)
            case KvDropped():
                self._dropped(job, event)
            case _:
                assert_never(event)

    def _note_of_pool(self, event: _OfPool) -> None:
        match event:
            case InstanceJoined():
                if event.instance.instance_id in self._instances:
                    raise ValueError(f"instance {event.instance.instance_id} joined twice")
                self._joined(event.instance)
            case InstanceLost():
                instance = self._instances.get(event.instance_id)
                if instance is not None:
                    self._lost(instance, dict(event.survivors))
            case ModelFailed():
                self._note_failure(event.model, event.reason)
            case ModelRecovered():
                self._failures.pop(event.model, None)
            case _:
                assert_never(event)

    # -- requests

    def _note_arrival(self, request: Request, found_tokens: int) -> None:
        if request.request_id in self._jobs:
            raise ValueError(f"request {request.request_id} arrived twice")
        self._before_arrival()
        facts = self._facts.get(request.model)
        if facts is None:
            self._out.append(unknown_model(request))
            return
        job = self._new_job(request, facts, (request.arrival_s, next(self._arrivals)))
        job.found_tokens = found_tokens
        refusal = self._refusal(job)
        if refusal is not None:
            self._out.append(refusal)
            return
        if not self._queued:
            self._drain.begin(self._now_s)
        self._jobs[request.request_id] = job
        self._arrived(job)

    def _before_arrival(self) -> None:
        return

    def _refusal(self, job: JobT) -> RejectRequest | None:
        if job.model in self._failures:
            return RejectRequest(job.request_id, RejectReason.MODEL_FAILED, self._failures[job.model])
        return self._misfit(job) or self._overload(job)

    def _misfit(self, job: JobT) -> RejectRequest | None:
        """Why no instance will ever take the job; the instances are looked at once per model and pool."""
        room_bytes = self._room_bytes.get(job.model)
        if room_bytes is None:
            room_bytes = self._room_bytes[job.model] = most_kv_bytes(job.facts, self._hosts(job.model))
        slab_blocks = self._slabs.capacity_blocks(job.facts)
        if job.width == 1 and job.max_blocks <= slab_blocks and job.max_kv_bytes <= room_bytes:
            return None
        return misfit(job, slab_blocks, self._hosts(job.model))

    def _overload(self, job: JobT) -> RejectRequest | None:
        queued, most = self._queued, self._limits.max_queued_requests
        if queued < most:
            return None
        wait_s = max(self._limits.min_retry_after_s, self._queue_s(), self._drain.wait_s(queued, self._now_s))
        return overload(job, queued, most, wait_s)

    def _grow(self, job: JobT, context_tokens: int) -> None:
        """Note a reported context."""
        job.context_tokens = max(job.context_tokens, context_tokens)
        if job.request_id in self._slabs:
            self._slabs.reserve(job)

    def _over(self, job: JobT) -> None:
        """The request ended by itself."""
        self._forget(job)

    def _forget(self, job: JobT) -> None:
        """The request is over."""
        self._withdraw(job)
        self._release(job)
        del self._jobs[job.request_id]

    def _reject(self, job: JobT, reason: RejectReason, detail: str) -> None:
        self._forget(job)
        self._out.append(RejectRequest(job.request_id, reason, detail))

    def _reject_misfits(self, jobs: Iterable[JobT]) -> list[JobT]:
        """The jobs that the instances there are can hold; the others are told why."""
        fitting = []
        for job in jobs:
            refusal = self._misfit(job)
            if refusal is None:
                fitting.append(job)
            else:
                self._reject(job, refusal.reason, refusal.detail)
        return fitting

    # -- the slab cache

    def _exhausted(self, job: JobT, event: KvExhausted) -> None:
        """Drop the KV of the holder that arrived last, so that the others go on; it is recomputed later.

        One at a time: whoever still waits when a drop is done is reported again.
        """
        victim = self._slabs.last_arrived()
        if not self._takes_part(job, event.turn_id) or victim is None or self._slabs.dropping:
            return
        alone = len(self._slabs) == 1
        if not (alone and job.starved_alone):
            job.starved_alone = alone  # then it may have met KV that is only about to be freed: one more try
            self._drop(self._jobs[victim.request_id])
            self._slabs.exhausted()
        else:
            detail = f"the KV slab cache is full with {job.context_tokens} tokens of this request alone"
            self._reject(job, RejectReason.TOO_LARGE, detail)

    def _drop(self, job: JobT) -> None:
        """Give up the job's KV; once that is done it waits to be prefilled again, with its whole context."""
        self._out.append(DropKv(job.request_id))
        self._slabs.drop(job)
        self._withdraw(job)
        job.phase = JobPhase.DROPPING

    def _dropped(self, job: JobT, event: KvDropped) -> None:
        if job.phase is JobPhase.DROPPING:
            self._release(job)
            job.context_tokens, job.found_tokens = event.context_tokens, 0
            job.phase = JobPhase.WAITING
            self._place(job)

    def _release(self, job: JobT) -> None:
        """The job's KV is free, if it had any."""
        self._slabs.release(job)

    # -- turns and models

    def _note_turn_ended(self, event: TurnEnded) -> None:
        instance = self._instances.get(event.instance_id)
        turn = instance.turn if instance is not None else None
        if instance is None or turn is None or turn.turn_id != event.turn_id:
            return  # of an instance that was lost
        model = turn.model
        members = self._turn_ended(instance, event)
        if event.reason is TurnEndReason.FAILED:
            self._evict_weights(instance, model)
            self._blame(members)

    def _blame(self, members: Iterable[JobT]) -> None:
        """Their turn failed; one that this happens to again and again is rejected."""
        for job in members:
            job.failed_turns += 1
            if job.failed_turns >= self._limits.max_failed_turns:
                detail = f"{job.model} failed in {job.failed_turns} turns of this request"
                self._reject(job, RejectReason.MODEL_FAILED, detail)

    def _note_failure(self, model: str, reason: str) -> None:
        """Its requests are rejected, its weights go from instances that do not run it."""
        self._failures[model] = reason
        self._model_failed(model)
        for job in [job for job in self._jobs.values() if job.model == model]:
            self._reject(job, RejectReason.MODEL_FAILED, reason)
        for instance in self._instances.values():
            if instance.turn is None or instance.turn.model != model:
                self._evict_weights(instance, model)
