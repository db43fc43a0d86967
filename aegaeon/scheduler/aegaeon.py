"""The policy ``aegaeon``: token-level scheduling of many models on few instances, as published.

Grouped first-come-first-served prefill, weighted round-robin decode, prefetch of the next different model (Aegaeon,
SOSP'25). Of the project: mixed instances, residency sets of any size, admission, recompute when the slab cache is
full, and recovery. Every event first corrects what is known of requests and instances; then each instance that this
touched is looked at once and its turn brought up to date. Looking at another would say nothing, for its turn is up to
date already, unless a prompt waits somewhere for room in the slab cache: then all are looked at.

Does not know: the clock, who carries out its commands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count
from operator import attrgetter
from typing import assert_never

from aegaeon.core.command import (
    Command,
    DropKv,
    EvictKv,
    EvictWeights,
    RejectReason,
    RejectRequest,
    ReleaseRequest,
)
from aegaeon.core.cost import CostModel
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
from aegaeon.core.model import ModelSpec
from aegaeon.core.request import Request
from aegaeon.scheduler.admission import misfit, most_kv_bytes, overload, retry_after_s, unknown_model
from aegaeon.scheduler.batch import Batch
from aegaeon.scheduler.decode_placement import DecodePlacement
from aegaeon.scheduler.drain import Drain
from aegaeon.scheduler.facts import model_facts
from aegaeon.scheduler.group import Group
from aegaeon.scheduler.instance_state import InstanceState
from aegaeon.scheduler.job import Job, Phase
from aegaeon.scheduler.limits import PoolLimits
from aegaeon.scheduler.prefill_placement import PrefillPlacement
from aegaeon.scheduler.slab_budget import SlabBudget
from aegaeon.scheduler.turn import Turn
from aegaeon.scheduler.turn_planner import TurnPlanner


class AegaeonScheduler:
    """A ``Scheduler``; see the module docstring and the contract in ``scheduler.py``."""

    def __init__(self, models: Sequence[ModelSpec], costs: CostModel, limits: PoolLimits) -> None:
        self._limits = limits
        self._facts = model_facts(models)
        self._jobs: dict[str, Job] = {}
        self._homeless: dict[str, Job] = {}  # no live instance takes them
        self._instances: dict[str, InstanceState] = {}  # in order of joining
        self._failures: dict[str, str] = {}  # failed models and why
        self._slabs = SlabBudget(limits)
        self._prefill = PrefillPlacement(self._instances, costs, limits.max_group_requests)
        self._decode = DecodePlacement(self._instances)
        self._planner = TurnPlanner(self._jobs, self._instances, self._prefill, self._slabs, costs, limits)
        self._arrivals = count()
        self._joins = count()
        self._touched: dict[str, None] = {}  # instances that the present event changed
        self._look_at_all = False
        self._room_bytes: dict[str, float] = {}  # by model: the longest context in KV bytes that some instance can hold
        self._drain = Drain()  # of those who wait for their prompt
        self._now_s = 0.0
        self._out: list[Command] = []

    def handle(self, event: Event, now_s: float) -> list[Command]:
        self._now_s, self._out = now_s, []
        self._touched.clear()
        self._note(event)
        refusals = self._slabs.refusals
        for state in self._due():
            self._planner.advance(state, now_s, self._out)
        self._look_at_all = self._slabs.refusals > refusals
        return self._out

    def _due(self) -> list[InstanceState]:
        """The instances to look at, in order of joining."""
        if self._look_at_all:
            return list(self._instances.values())
        states = [self._instances[name] for name in self._touched if name in self._instances]
        return sorted(states, key=attrgetter("joined")) if len(states) > 1 else states

    def _touch(self, job: Job) -> None:
        """What the job's group or batch is about to be, or has become, changes its instance."""
        if job.group is not None:
            self._touched[job.group.instance_id] = None
        if job.batch is not None:
            self._touched[job.batch.instance_id] = None

    def _note(self, event: Event) -> None:
        match event:
            case RequestArrived():
                self._on_arrived(event.request)
            case RequestPrefilled() | RequestFinished() | RequestFailed() | RequestCancelled():
                self._note_of_request(event)
            case KvExhausted() | KvDropped():
                self._note_of_kv(event)
            case TurnEnded():
                self._on_turn_ended(event)
            case InstanceJoined() | InstanceLost() | ModelFailed() | ModelRecovered():
                self._note_of_pool(event)
            case WeightsFetched():
                pass  # whatever is asked for is read when it is not there
            case _:
                assert_never(event)

    def _note_of_request(self, event: RequestPrefilled | RequestFinished | RequestFailed | RequestCancelled) -> None:
        job = self._jobs.get(event.request_id)
        if job is None:
            return  # the event crossed a command that ended the request
        match event:
            case RequestPrefilled():
                self._on_prefilled(job, event)
            case RequestFinished() | RequestFailed():
                self._forget(job)
            case RequestCancelled():
                self._forget(job)
                self._out.append(ReleaseRequest(job.request_id))
            case _:
                assert_never(event)

    def _note_of_kv(self, event: KvExhausted | KvDropped) -> None:
        job = self._jobs.get(event.request_id)
        if job is None:
            return
        match event:
            case KvExhausted():
                self._on_exhausted(job, event)
            case KvDropped():
                self._on_dropped(job, event)
            case _:
                assert_never(event)

    def _note_of_pool(self, event: InstanceJoined | InstanceLost | ModelFailed | ModelRecovered) -> None:
        self._look_at_all = True
        self._room_bytes.clear()
        match event:
            case InstanceJoined():
                self._on_joined(event)
            case InstanceLost():
                self._on_lost(event)
            case ModelFailed():
                self._on_model_failed(event)
            case ModelRecovered():
                self._failures.pop(event.model, None)
            case _:
                assert_never(event)

    # -- requests

    def _on_arrived(self, request: Request) -> None:
        if request.request_id in self._jobs:
            raise ValueError(f"request {request.request_id} arrived twice")
        facts = self._facts.get(request.model)
        if facts is None:
            self._out.append(unknown_model(request))
            return
        job = Job(request, facts, (request.arrival_s, next(self._arrivals)), request.prompt_tokens)
        refusal = self._refusal(job)
        if refusal is not None:
            self._out.append(refusal)
            return
        if not self._queued:
            self._drain.begin(self._now_s)
        self._jobs[request.request_id] = job
        if self._prefill.place(job, self._now_s):
            self._touch(job)
        else:
            self._homeless[request.request_id] = job

    def _refusal(self, job: Job) -> RejectRequest | None:
        if job.model in self._failures:
            return RejectRequest(job.request_id, RejectReason.MODEL_FAILED, self._failures[job.model])
        return self._misfit(job) or self._overload(job)

    def _overload(self, job: Job) -> RejectRequest | None:
        queued = self._queued
        if queued < self._limits.max_queued_requests:
            return None
        estimate_s = retry_after_s(self._prefill.drains_s(), self._limits.min_retry_after_s)
        wait_s = max(estimate_s, self._drain.wait_s(queued, self._now_s))
        return overload(job, queued, self._limits.max_queued_requests, wait_s)

    @property
    def _queued(self) -> int:
        return len(self._homeless) + self._prefill.waiting

    def _misfit(self, job: Job) -> RejectRequest | None:
        room_bytes = self._room_bytes.get(job.model)
        if room_bytes is None:
            specs = [state.spec for state in self._instances.values()]
            room_bytes = self._room_bytes[job.model] = most_kv_bytes(job.facts, specs)
        slab_blocks = self._slabs.capacity_blocks(job.facts)
        if job.max_blocks <= slab_blocks and job.max_kv_bytes <= room_bytes:
            return None
        return misfit(job, slab_blocks, [state.spec for state in self._instances.values()])

    def _on_prefilled(self, job: Job, event: RequestPrefilled) -> None:
        turn = job.turn
        if turn is None or turn.turn_id != event.turn_id:
            job.context_tokens = max(job.context_tokens, event.context_tokens)  # its KV was dropped meanwhile
            return
        job.phase = Phase.DECODING
        self._drain.leave(self._now_s)
        self._grow(job, event.context_tokens)
        if isinstance(turn.source, Group):
            self._touch(job)
            self._leave_turn(job)
            self._prefill.withdraw(job)
            self._place(job)

    def _on_exhausted(self, job: Job, event: KvExhausted) -> None:
        """Drop the KV of the holder that arrived last, so that the others go on; it is recomputed later.

        One at a time: whoever still waits when a drop is done is reported again.
        """
        victim = self._slabs.last_arrived()
        stale = job.turn is None or job.turn.turn_id != event.turn_id
        if stale or victim is None or self._slabs.dropping:
            return
        alone = len(self._slabs) == 1
        if not (alone and job.starved_alone):
            job.starved_alone = alone  # then it may have met KV that is only about to be freed: one more try
            self._drop(victim)
            self._slabs.exhausted()
        else:
            detail = f"the KV slab cache is full with {job.context_tokens} tokens of this request alone"
            self._reject(job, RejectReason.TOO_LARGE, detail)

    def _drop(self, job: Job) -> None:
        """Give up the job's KV; once that is done it waits to be prefilled again, with its whole context."""
        self._out.append(DropKv(job.request_id))
        self._slabs.drop(job)
        self._withdraw(job)
        job.phase = Phase.DROPPING

    def _on_dropped(self, job: Job, event: KvDropped) -> None:
        if job.phase is Phase.DROPPING:
            self._slabs.release(job)
            job.context_tokens = event.context_tokens
            job.phase = Phase.WAITING
            self._place(job)

    def _place(self, job: Job) -> None:
        """Find an instance for a job that was here before; without one it waits for one to join."""
        waiting = job.phase is Phase.WAITING
        placed = self._prefill.replace(job, self._now_s) if waiting else self._decode.place(job)
        self._touch(job)
        if not placed:
            self._homeless[job.request_id] = job
            self._slabs.pass_over(job)

    def _grow(self, job: Job, context_tokens: int) -> None:
        """Note a reported context."""
        job.context_tokens = max(job.context_tokens, context_tokens)
        if job.request_id in self._slabs:
            self._slabs.reserve(job)
        if job.batch is not None:
            self._touch(job)
            job.batch.put(job.request_id, job.kv_bytes)

    def _leave_turn(self, job: Job) -> None:
        if job.turn is not None:
            self._touched[job.turn.source.instance_id] = None
            del job.turn.members[job.request_id]
            job.turn = None

    def _forget(self, job: Job) -> None:
        """The request is over."""
        self._withdraw(job)
        self._slabs.release(job)
        del self._jobs[job.request_id]

    def _withdraw(self, job: Job) -> None:
        """Take a job out of its turn, group or batch, or from among the homeless."""
        self._touch(job)
        if job.batch is not None:
            self._instances[job.batch.instance_id].kept.pop(job.request_id, None)
        self._leave_turn(job)
        self._prefill.withdraw(job)
        self._decode.withdraw(job)
        self._homeless.pop(job.request_id, None)

    def _reject(self, job: Job, reason: RejectReason, detail: str) -> None:
        self._forget(job)
        self._out.append(RejectRequest(job.request_id, reason, detail))

    # -- turns

    def _on_turn_ended(self, event: TurnEnded) -> None:
        state = self._instances.get(event.instance_id)
        if state is None or state.turn is None or state.turn.turn_id != event.turn_id:
            return  # of an instance that was lost
        self._touched[state.instance_id] = None
        turn, state.turn = state.turn, None
        state.prefilled_last = isinstance(turn.source, Group)
        for request_id, context_tokens in event.contexts:
            if request_id in self._jobs:
                self._grow(self._jobs[request_id], context_tokens)
        members = [self._jobs[request_id] for request_id in turn.members]
        self._settle_kv(state, members)
        for job in members:
            self._settle(job)
        if event.reason is TurnEndReason.FAILED:
            self._on_turn_failed(state, turn, members)

    def _settle_kv(self, state: InstanceState, members: list[Job]) -> None:
        """The KV of a batch stays on the device until the next turn needs the room; that of prompts goes at once."""
        state.kept.update((job.request_id, job.kv_bytes) for job in members if job.phase is Phase.DECODING)
        prompts = tuple(job.request_id for job in members if job.phase is Phase.WAITING)
        if prompts:
            self._out.append(EvictKv(state.instance_id, prompts))

    def _settle(self, job: Job) -> None:
        """A member that was to be prefilled beside a batch goes back to wait for its own turn."""
        self._leave_turn(job)
        if job.phase is Phase.WAITING and job.batch is not None:
            self._touch(job)
            self._decode.withdraw(job)
            self._place(job)

    def _on_turn_failed(self, state: InstanceState, turn: Turn, members: list[Job]) -> None:
        if turn.model in state.residency:
            state.residency.discard(turn.model)
            self._out.append(EvictWeights(state.instance_id, turn.model))
        for job in members:
            job.failed_turns += 1
            if job.failed_turns >= self._limits.max_failed_turns:
                detail = f"{job.model} failed in {job.failed_turns} turns of this request"
                self._reject(job, RejectReason.MODEL_FAILED, detail)

    # -- the pool

    def _on_joined(self, event: InstanceJoined) -> None:
        spec = event.instance
        if spec.instance_id in self._instances:
            raise ValueError(f"instance {spec.instance_id} joined twice")
        self._instances[spec.instance_id] = InstanceState.of(spec, next(self._joins), self._facts)
        homeless = sorted(self._homeless.values(), key=attrgetter("order"))
        self._homeless.clear()
        for job in homeless:
            refusal = self._misfit(job)
            if refusal is None:
                self._place(job)
            else:
                self._reject(job, refusal.reason, refusal.detail)

    def _on_lost(self, event: InstanceLost) -> None:
        state = self._instances.get(event.instance_id)
        if state is None:
            return
        jobs = self._evacuate(state)
        del self._instances[event.instance_id]
        survivors: Mapping[str, int] = dict(event.survivors)
        for job in jobs:
            took_part = job.turn is not None
            self._leave_turn(job)
            if job.request_id in survivors:
                self._grow(job, survivors[job.request_id])
            elif took_part:
                self._drop(job)
        for job in jobs:
            if job.phase is not Phase.DROPPING:
                self._place(job)

    def _evacuate(self, state: InstanceState) -> list[Job]:
        """Take all jobs out of the instance's groups and batches; returns them by arrival."""
        sources: list[Group | Batch] = [*state.prefill, *state.decode]
        jobs = sorted((self._jobs[name] for source in sources for name in source.members), key=attrgetter("order"))
        for job in jobs:
            self._prefill.withdraw(job)
            self._decode.withdraw(job)
        return jobs

    def _on_model_failed(self, event: ModelFailed) -> None:
        self._failures[event.model] = event.reason
        for job in [job for job in self._jobs.values() if job.model == event.model]:
            self._reject(job, RejectReason.MODEL_FAILED, event.reason)
        for state in self._instances.values():
            running = state.turn is not None and state.turn.model == event.model
            if event.model in state.residency and not running:
                state.residency.discard(event.model)
                self._out.append(EvictWeights(state.instance_id, event.model))
