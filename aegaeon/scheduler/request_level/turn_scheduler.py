"""The ``Scheduler`` that all baselines are: requests are placed on a GPU once, and a GPU runs one model at a time.

A run lasts until no request of it is left, unless the strategy takes it out; requests of its model join it (continuous
batching) and are prefilled before the others go on. An event leads to a look at the GPUs that it touched, no others.

Does not know: the clock, which baseline it is, who carries out its commands.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from heapq import heappop, heappush
from itertools import count
from operator import attrgetter
from typing import assert_never

from aegaeon.core.command import (
    Command,
    DropKv,
    EndTurn,
    EvictKv,
    EvictWeights,
    ExtendTurn,
    RejectReason,
    RejectRequest,
    ReleaseRequest,
    StartTurn,
)
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
from aegaeon.core.instance import InstanceSpec, Role
from aegaeon.core.model import ModelSpec
from aegaeon.core.request import Request
from aegaeon.scheduler.admission import misfit, most_kv_bytes, overload, unknown_model
from aegaeon.scheduler.drain import Drain
from aegaeon.scheduler.facts import model_facts
from aegaeon.scheduler.job import Phase
from aegaeon.scheduler.limits import PoolLimits
from aegaeon.scheduler.request_level.gpu import Gpu, PlacedJob, Run
from aegaeon.scheduler.request_level.strategy import Strategy
from aegaeon.scheduler.residency import Residency
from aegaeon.scheduler.slab_budget import SlabBudget


class TurnScheduler:
    """A ``Scheduler``; see the contract in ``aegaeon/scheduler/scheduler.py``."""

    def __init__(self, models: Sequence[ModelSpec], limits: PoolLimits, strategy: Strategy) -> None:
        self._strategy = strategy
        self._limits = limits
        self._facts = model_facts(models)
        self._jobs: dict[str, PlacedJob] = {}
        self._homeless: dict[str, PlacedJob] = {}
        self._gpus: dict[str, Gpu] = {}  # in order of joining
        self._failures: dict[str, str] = {}
        self._most_kv_bytes: dict[str, float] = {}  # by model, for the GPUs there are
        self._slabs = SlabBudget(limits)
        self._deadlines: list[tuple[float, int, PlacedJob]] = []  # of those without a first token
        self._turn_ids = count(1)
        self._arrivals = count()
        self._joins = count()
        self._touched: dict[str, Gpu] = {}
        self._starved: dict[str, Gpu] = {}  # could not start or extend for want of slabs
        self._running = 0
        self._drain = Drain()  # of those without a first token
        self._now_s = 0.0
        self._out: list[Command] = []

    def handle(self, event: Event, now_s: float) -> list[Command]:
        self._now_s, self._out = now_s, []
        self._touched.clear()
        self._note(event)
        for gpu in self._touched.values():
            self._advance(gpu)
        return self._out

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
                if job.running and job.gpu is not None:
                    job.gpu.progress_s = self._now_s
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
        self._drop_late()
        facts = self._facts.get(request.model)
        if facts is None:
            self._out.append(unknown_model(request))
            return
        order = (request.arrival_s, next(self._arrivals))
        job = PlacedJob(request, facts, order, request.prompt_tokens, reported_s=self._now_s)
        refusal = self._refusal(job)
        if refusal is not None:
            self._out.append(refusal)
            return
        if not self._waiting:
            self._drain.begin(self._now_s)
        self._jobs[request.request_id] = job
        if self._strategy.drop_after_s is not None:
            heappush(self._deadlines, (request.arrival_s + self._strategy.drop_after_s, order[1], job))
        self._place(job)

    def _refusal(self, job: PlacedJob) -> RejectRequest | None:
        if job.model in self._failures:
            return RejectRequest(job.request_id, RejectReason.MODEL_FAILED, self._failures[job.model])
        limits = self._limits
        wait_s = max(limits.min_retry_after_s, self._drain.wait_s(self._waiting, self._now_s))
        return self._misfit(job) or overload(job, self._waiting, limits.max_queued_requests, wait_s)

    @property
    def _waiting(self) -> int:
        return len(self._jobs) - self._running

    def _misfit(self, job: PlacedJob) -> RejectRequest | None:
        """Why no GPU will ever take the job; the GPUs are looked at once per model and pool."""
        most_bytes = self._most_kv_bytes.get(job.model)
        if most_bytes is None:
            most_bytes = most_kv_bytes(job.facts, self._host_specs(job))
            self._most_kv_bytes[job.model] = most_bytes
        slab_blocks = self._slabs.capacity_blocks(job.facts)
        if job.max_kv_bytes <= most_bytes and job.max_blocks <= slab_blocks:
            return None
        return misfit(job, slab_blocks, self._host_specs(job))

    def _host_specs(self, job: PlacedJob) -> list[InstanceSpec]:
        return [gpu.spec for gpu in self._strategy.hosts(job.model, self._gpus)]

    def _place(self, job: PlacedJob) -> None:
        gpu = self._strategy.place(job, self._gpus, self._now_s)
        if gpu is None:
            self._homeless[job.request_id] = job
            self._slabs.pass_over(job)
        else:
            gpu.enqueue(job)
            self._touch(gpu)

    def _drop_late(self) -> None:
        """Give up requests that should have had their first token by now; looked for when one arrives, as published."""
        while self._deadlines and self._deadlines[0][0] <= self._now_s:
            _, _, job = heappop(self._deadlines)
            if not job.started and self._jobs.get(job.request_id) is job:
                detail = f"no first token within {self._strategy.drop_after_s} s"
                self._reject(job, RejectReason.OVERLOADED, detail)

    def _on_prefilled(self, job: PlacedJob, event: RequestPrefilled) -> None:
        if not job.started:
            self._drain.leave(self._now_s)
        job.started = True
        run = job.gpu.run if job.gpu is not None else None
        if run is not None and run.turn_id == event.turn_id and job.running:
            job.phase = Phase.DECODING
        if job.gpu is not None:
            job.gpu.progress_s = self._now_s
        self._grow(job, event.context_tokens)

    def _grow(self, job: PlacedJob, context_tokens: int) -> None:
        job.context_tokens = max(job.context_tokens, context_tokens)
        job.reported_s = self._now_s
        if job.request_id in self._slabs:
            self._slabs.reserve(job)

    def _forget(self, job: PlacedJob) -> None:
        """The request is over."""
        self._withdraw(job)
        self._release_slabs(job)
        del self._jobs[job.request_id]

    def _withdraw(self, job: PlacedJob) -> None:
        self._homeless.pop(job.request_id, None)
        if job.gpu is not None:
            self._touch(job.gpu)
            self._running -= job.running
            job.gpu.remove(job)

    def _reject(self, job: PlacedJob, reason: RejectReason, detail: str) -> None:
        self._forget(job)
        self._out.append(RejectRequest(job.request_id, reason, detail))

    # -- KV

    def _release_slabs(self, job: PlacedJob) -> None:
        self._slabs.release(job)
        self._touched |= self._starved
        self._starved.clear()

    def _on_exhausted(self, job: PlacedJob, event: KvExhausted) -> None:
        """Drop the KV of the holder that arrived last; alone in the cache, and again, a request is too large for it."""
        run = job.gpu.run if job.gpu is not None else None
        victim = self._slabs.last_arrived()
        stale = run is None or run.turn_id != event.turn_id or not job.running
        if stale or victim is None or self._slabs.dropping:
            return
        alone = len(self._slabs) == 1
        if alone and job.starved_alone:
            detail = f"the KV slab cache is full with {job.context_tokens} tokens of this request alone"
            self._reject(job, RejectReason.TOO_LARGE, detail)
            return
        job.starved_alone = alone
        self._drop(self._jobs[victim.request_id])
        self._slabs.exhausted()

    def _drop(self, job: PlacedJob) -> None:
        """Give up the job's KV; once that is done it waits to be prefilled again, with its whole context."""
        self._out.append(DropKv(job.request_id))
        self._slabs.drop(job)
        self._withdraw(job)
        job.phase = Phase.DROPPING

    def _on_dropped(self, job: PlacedJob, event: KvDropped) -> None:
        if job.phase is Phase.DROPPING:
            self._release_slabs(job)
            job.context_tokens = event.context_tokens
            job.phase = Phase.WAITING
            self._place(job)

    # -- runs

    def _touch(self, gpu: Gpu) -> None:
        self._touched[gpu.instance_id] = gpu

    def _advance(self, gpu: Gpu) -> None:
        """Bring the GPU's run up to date."""
        run = gpu.run
        if run is None:
            self._start(gpu)
        elif not run.ending and gpu.queue:
            if run.members and self._strategy.takes_out(gpu, self._now_s):
                run.ending = True
                self._out.append(EndTurn(gpu.instance_id, run.turn_id))
            else:
                self._extend(gpu, run)

    def _start(self, gpu: Gpu) -> None:
        if not gpu.queue:
            return
        run = Run(next(self._turn_ids), "", self._now_s)
        jobs = self._enter(gpu, run, self._strategy.next_run(gpu, self._now_s))
        if not jobs:
            return
        run.model = jobs[0].model
        run.switches = run.model not in gpu.residency
        gpu.run, gpu.model = run, run.model
        self._evict_kept(gpu)
        evicted = gpu.residency.admit(run.model)
        assert evicted is not None, "placed on a GPU that cannot hold its weights"
        self._out += [EvictWeights(gpu.instance_id, model) for model in evicted]
        waiting, decoding = _by_phase(jobs)
        self._out.append(StartTurn(gpu.instance_id, run.turn_id, run.model, waiting, decoding, None, True))

    def _extend(self, gpu: Gpu, run: Run) -> None:
        if not run.members:
            return  # it is about to end
        jobs = self._enter(gpu, run, self._strategy.joiners(gpu, self._now_s))
        if jobs:
            waiting, decoding = _by_phase(jobs)
            self._out.append(ExtendTurn(gpu.instance_id, run.turn_id, waiting, decoding))

    def _enter(self, gpu: Gpu, run: Run, candidates: Iterable[PlacedJob]) -> list[PlacedJob]:
        """Put the candidates into the run, up to the first that has no room on the device or in the slab cache."""
        room_bytes = gpu.spec.kv_bytes - sum(job.kv_bytes for job in run.members.values())
        room = gpu.spec.max_batch_requests - len(run.members)
        entered: list[PlacedJob] = []
        for job in candidates:
            room_bytes -= job.kv_bytes
            if len(entered) == room or room_bytes < 0 or not self._admits(gpu, job):
                break
            entered.append(job)
        gpu.enter(run, entered)
        self._running += len(entered)
        return entered

    def _admits(self, gpu: Gpu, job: PlacedJob) -> bool:
        """Whether the job may take blocks of the slab cache; then they are reserved."""
        quiet = not self._running and not self._slabs.dropping  # nothing would ever free any
        if not (self._slabs.admits(job) or quiet):
            self._starved[gpu.instance_id] = gpu
            return False
        self._slabs.reserve(job)
        return True

    def _evict_kept(self, gpu: Gpu) -> None:
        """Device copies of those who are not in the run make room."""
        out = tuple(name for name, job in gpu.kept.items() if not job.running)
        if out:
            self._out.append(EvictKv(gpu.instance_id, out))
        gpu.kept.clear()

    def _on_turn_ended(self, event: TurnEnded) -> None:
        gpu = self._gpus.get(event.instance_id)
        if gpu is None or gpu.run is None or gpu.run.turn_id != event.turn_id:
            return  # of a GPU that was lost
        run = gpu.run
        gpu.progress_s = self._now_s
        self._touch(gpu)
        for request_id, context_tokens in event.contexts:
            if request_id in self._jobs:
                self._grow(self._jobs[request_id], context_tokens)
        members = list(run.members.values())
        gpu.end_run()
        self._settle(gpu, run, members)
        if event.reason is TurnEndReason.FAILED:
            self._on_turn_failed(gpu, run, members)

    def _settle(self, gpu: Gpu, run: Run, members: list[PlacedJob]) -> None:
        """Members of a run that ended wait again; those that were taken out lose what was computed."""
        self._running -= len(members)
        prompts = tuple(job.request_id for job in members if job.phase is Phase.WAITING)
        if prompts:
            self._out.append(EvictKv(gpu.instance_id, prompts))
        gpu.kept |= {job.request_id: job for job in members if job.phase is Phase.DECODING}
        if run.ending and self._strategy.forgets_kv:
            for job in list(gpu.kept.values()):
                self._drop(job)

    def _on_turn_failed(self, gpu: Gpu, run: Run, members: list[PlacedJob]) -> None:
        if run.model in gpu.residency:
            gpu.residency.discard(run.model)
            self._out.append(EvictWeights(gpu.instance_id, run.model))
        for job in members:
            job.failed_turns += 1
            if job.failed_turns >= self._limits.max_failed_turns:
                detail = f"{job.model} failed in {job.failed_turns} turns of this request"
                self._reject(job, RejectReason.MODEL_FAILED, detail)

    # -- the pool

    def _on_joined(self, event: InstanceJoined) -> None:
        spec = event.instance
        if spec.instance_id in self._gpus:
            raise ValueError(f"instance {spec.instance_id} joined twice")
        if spec.role is not Role.MIXED:
            raise ValueError(f"instance {spec.instance_id}: baselines prefill and decode on the same instance")
        self._most_kv_bytes.clear()
        gpu = self._gpus[spec.instance_id] = Gpu(spec, next(self._joins), Residency(spec, self._facts))
        self._touch(gpu)
        self._house(sorted(self._homeless.values(), key=attrgetter("order")))

    def _house(self, jobs: Iterable[PlacedJob]) -> None:
        """Place jobs that have no GPU, or say why none will ever take them."""
        for job in jobs:
            self._homeless.pop(job.request_id, None)
            refusal = self._misfit(job)
            if refusal is None:
                self._place(job)
            else:
                self._reject(job, refusal.reason, refusal.detail)

    def _on_lost(self, event: InstanceLost) -> None:
        gpu = self._gpus.pop(event.instance_id, None)
        if gpu is None:
            return
        self._starved.pop(gpu.instance_id, None)
        self._most_kv_bytes.clear()
        members = list(gpu.run.members.values()) if gpu.run is not None else []
        jobs = sorted([*members, *gpu.queue.values()], key=attrgetter("order"))
        survivors: Mapping[str, int] = dict(event.survivors)
        for job in jobs:
            took_part = job.running
            self._withdraw(job)
            if job.request_id in survivors:
                self._grow(job, survivors[job.request_id])
            elif took_part:
                self._drop(job)
        self._touched.pop(gpu.instance_id, None)
        for other in self._gpus.values():
            self._touch(other)
        for job in jobs:
            if job.phase is not Phase.DROPPING:
                self._place(job)

    def _on_model_failed(self, event: ModelFailed) -> None:
        self._failures[event.model] = event.reason
        for job in [job for job in self._jobs.values() if job.model == event.model]:
            self._reject(job, RejectReason.MODEL_FAILED, event.reason)
        for gpu in self._gpus.values():
            running = gpu.run is not None and gpu.run.model == event.model
            if event.model in gpu.residency and not running:
                gpu.residency.discard(event.model)
                self._out.append(EvictWeights(gpu.instance_id, event.model))


def _by_phase(jobs: Sequence[PlacedJob]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    waiting = tuple(job.request_id for job in jobs if job.phase is Phase.WAITING)
    decoding = tuple(job.request_id for job in jobs if job.phase is Phase.DECODING)
    return waiting, decoding
