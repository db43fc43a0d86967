"""The ``Scheduler`` that all baselines are: requests are placed on a GPU once, and a GPU runs one model at a time.

A turn lasts until no request of it is left, unless the strategy takes it out; requests of its model join it (continuous
batching) and are prefilled before the others go on. An event leads to a look at the GPUs that it touched, no others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from heapq import heappop, heappush
from itertools import count
from operator import attrgetter

from aegaeon.core.command import EndTurn, EvictKv, EvictWeights, ExtendTurn, RejectReason, StartTurn
from aegaeon.core.event import RequestPrefilled, TurnEnded
from aegaeon.core.instance import InstanceSpec, Role
from aegaeon.core.model import ModelSpec
from aegaeon.core.request import Request
from aegaeon.scheduler.facts import PolicyFacts
from aegaeon.scheduler.job import JobPhase
from aegaeon.scheduler.limits import PoolLimits
from aegaeon.scheduler.policies.request_level.instance import QueueInstance, QueueJob, QueueTurn
from aegaeon.scheduler.policies.request_level.strategy import Strategy
from aegaeon.scheduler.residency import Residency
from aegaeon.scheduler.shell import PolicyShell


class TurnScheduler(PolicyShell[QueueJob, QueueInstance]):
    """A ``Scheduler``; see the contract in ``aegaeon.scheduler.scheduler``."""

    def __init__(self, models: Sequence[ModelSpec], limits: PoolLimits, strategy: Strategy) -> None:
        super().__init__(models, limits)
        self._strategy = strategy
        self._homeless: dict[str, QueueJob] = {}
        self._deadlines: list[tuple[float, int, QueueJob]] = []  # of those without a first token
        self._turn_ids = count(1)
        self._touched: dict[str, QueueInstance] = {}
        self._starved: dict[str, QueueInstance] = {}  # could not start or extend for want of slabs
        self._running = 0

    def _begin(self) -> None:
        self._touched.clear()

    def _decide(self) -> None:
        for instance in self._touched.values():
            self._advance(instance)

    # -- requests

    def _before_arrival(self) -> None:
        """Give up requests that should have had their first token by now; looked for when one arrives, as published."""
        while self._deadlines and self._deadlines[0][0] <= self._now_s:
            _, _, job = heappop(self._deadlines)
            if not job.started and self._jobs.get(job.request_id) is job:
                detail = f"no first token within {self._strategy.drop_after_s} s"
                self._reject(job, RejectReason.OVERLOADED, detail)

    def _new_job(self, request: Request, facts: PolicyFacts, order: tuple[float, int]) -> QueueJob:
        return QueueJob(request, facts, order, request.prompt_tokens, reported_s=self._now_s)

    def _arrived(self, job: QueueJob) -> None:
        if self._strategy.drop_after_s is not None:
            due_s = job.request.arrival_s + self._strategy.drop_after_s
            heappush(self._deadlines, (due_s, job.order[1], job))
        self._place(job)

    @property
    def _queued(self) -> int:
        return len(self._jobs) - self._running

    def _queue_s(self) -> float:
        return 0.0  # nobody knows how long the requests ahead will run

    def _hosts(self, model: str) -> list[InstanceSpec]:
        return [instance.spec for instance in self._strategy.hosts(model, self._instances)]

    def _place(self, job: QueueJob) -> None:
        instance = self._strategy.place(job, self._instances, self._now_s)
        if instance is None:
            self._homeless[job.request_id] = job
            self._slabs.pass_over(job)
        else:
            instance.enqueue(job)
            self._touch(instance)

    def _prefilled(self, job: QueueJob, event: RequestPrefilled) -> None:
        if not job.started:
            self._drain.leave(self._now_s)
        job.started = True
        if self._takes_part(job, event.turn_id):
            job.phase = JobPhase.DECODING
        if job.instance is not None:
            job.instance.progress_s = self._now_s
        self._grow(job, event.context_tokens)

    def _takes_part(self, job: QueueJob, turn_id: int) -> bool:
        turn = job.instance.turn if job.instance is not None else None
        return turn is not None and turn.turn_id == turn_id and job.running

    def _grow(self, job: QueueJob, context_tokens: int) -> None:
        job.reported_s = self._now_s
        super()._grow(job, context_tokens)

    def _over(self, job: QueueJob) -> None:
        if job.running and job.instance is not None:
            job.instance.progress_s = self._now_s
        super()._over(job)

    def _withdraw(self, job: QueueJob) -> None:
        self._homeless.pop(job.request_id, None)
        if job.instance is not None:
            self._touch(job.instance)
            self._running -= job.running
            job.instance.remove(job)

    def _release(self, job: QueueJob) -> None:
        super()._release(job)
        self._touched |= self._starved
        self._starved.clear()

    # -- turns

    def _touch(self, instance: QueueInstance) -> None:
        self._touched[instance.instance_id] = instance

    def _advance(self, instance: QueueInstance) -> None:
        """Bring the GPU's turn up to date."""
        turn = instance.turn
        if turn is None:
            self._start(instance)
        elif not turn.ending and instance.queue:
            if turn.members and self._strategy.takes_out(instance, self._now_s):
                turn.ending = True
                self._out.append(EndTurn(instance.instance_id, turn.turn_id))
            else:
                self._extend(instance, turn)

    def _start(self, instance: QueueInstance) -> None:
        if not instance.queue:
            return
        turn = QueueTurn(next(self._turn_ids), "", self._now_s)
        jobs = self._enter(instance, turn, self._strategy.next_turn(instance, self._now_s))
        if not jobs:
            return
        turn.model = jobs[0].model
        turn.switches = turn.model not in instance.residency
        instance.turn, instance.model = turn, turn.model
        self._evict_kept(instance)
        evicted = instance.residency.admit(turn.model)
        assert evicted is not None, "placed on a GPU that cannot hold its weights"
        self._out += [EvictWeights(instance.instance_id, model) for model in evicted]
        waiting, decoding = _by_phase(jobs)
        self._out.append(StartTurn(instance.instance_id, turn.turn_id, turn.model, waiting, decoding, None, True))

    def _extend(self, instance: QueueInstance, turn: QueueTurn) -> None:
        if not turn.members:
            return  # it is about to end
        jobs = self._enter(instance, turn, self._strategy.joiners(instance, self._now_s))
        if jobs:
            waiting, decoding = _by_phase(jobs)
            self._out.append(ExtendTurn(instance.instance_id, turn.turn_id, waiting, decoding))

    def _enter(self, instance: QueueInstance, turn: QueueTurn, candidates: Iterable[QueueJob]) -> list[QueueJob]:
        """Put the candidates into the turn, up to the first that has no room on the device or in the slab cache."""
        room_bytes = instance.spec.kv_bytes - sum(job.kv_bytes for job in turn.members.values())
        rows = instance.spec.max_batch_requests - sum([job.width for job in turn.members.values()])
        entered: list[QueueJob] = []
        for job in candidates:
            room_bytes -= job.kv_bytes
            rows -= job.width
            if rows < 0 or room_bytes < 0 or not self._admits(instance, job):
                break
            entered.append(job)
        instance.enter(turn, entered)
        self._running += len(entered)
        return entered

    def _admits(self, instance: QueueInstance, job: QueueJob) -> bool:
        """Whether the job may take blocks of the slab cache; then they are reserved."""
        quiet = not self._running and not self._slabs.dropping  # nothing would ever free any
        if not (self._slabs.admits(job) or quiet):
            self._starved[instance.instance_id] = instance
            return False
        self._slabs.reserve(job)
        return True

    def _evict_kept(self, instance: QueueInstance) -> None:
        """Device copies of those who are not in the turn make room."""
        out = tuple(name for name, job in instance.kept.items() if not job.running)
        if out:
            self._out.append(EvictKv(instance.instance_id, out))
        instance.kept.clear()

    def _turn_ended(self, instance: QueueInstance, event: TurnEnded) -> list[QueueJob]:
        turn = instance.turn
        assert turn is not None, f"{instance.instance_id} has no turn to end"
        instance.progress_s = self._now_s
        self._touch(instance)
        for request_id, context_tokens in event.contexts:
            if request_id in self._jobs:
                self._grow(self._jobs[request_id], context_tokens)
        members = list(turn.members.values())
        instance.end_turn()
        self._settle(instance, turn, members)
        return members

    def _settle(self, instance: QueueInstance, turn: QueueTurn, members: list[QueueJob]) -> None:
        """Members of a turn that ended wait again; those that were taken out lose what was computed."""
        self._running -= len(members)
        prompts = tuple(job.request_id for job in members if job.phase is JobPhase.WAITING)
        if prompts:
            self._out.append(EvictKv(instance.instance_id, prompts))
        instance.kept |= {job.request_id: job for job in members if job.phase is JobPhase.DECODING}
        if turn.ending and self._strategy.forgets_kv:
            for job in list(instance.kept.values()):
                self._drop(job)

    def _evict_weights(self, instance: QueueInstance, model: str) -> None:
        if model in instance.residency:
            instance.residency.discard(model)
            self._out.append(EvictWeights(instance.instance_id, model))

    # -- the pool

    def _joined(self, spec: InstanceSpec) -> None:
        if spec.role is not Role.MIXED:
            raise ValueError(f"instance {spec.instance_id}: baselines prefill and decode on the same instance")
        instance = QueueInstance(spec, next(self._joins), Residency(spec, self._facts))
        self._instances[spec.instance_id] = instance
        self._touch(instance)
        homeless = sorted(self._homeless.values(), key=attrgetter("order"))
        self._homeless.clear()
        for job in self._reject_misfits(homeless):
            self._place(job)

    def _lost(self, instance: QueueInstance, survivors: Mapping[str, int]) -> None:
        del self._instances[instance.instance_id]
        self._starved.pop(instance.instance_id, None)
        members = list(instance.turn.members.values()) if instance.turn is not None else []
        jobs = sorted([*members, *instance.queue.values()], key=attrgetter("order"))
        for job in jobs:
            took_part = job.running
            self._withdraw(job)
            if job.request_id in survivors:
                self._grow(job, survivors[job.request_id])
            elif took_part:
                self._drop(job)
        self._touched.pop(instance.instance_id, None)
        for other in self._instances.values():
            self._touch(other)
        for job in jobs:
            if job.phase is not JobPhase.DROPPING:
                self._place(job)


def _by_phase(jobs: Sequence[QueueJob]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    waiting = tuple(job.request_id for job in jobs if job.phase is JobPhase.WAITING)
    decoding = tuple(job.request_id for job in jobs if job.phase is JobPhase.DECODING)
    return waiting, decoding
