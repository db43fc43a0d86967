"""Keeps every instance's turn in line with the work placed there: starts, extends and ends turns, prefetches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import count

from aegaeon.core.command import Command, EndTurn, EvictKv, EvictWeights, ExtendTurn, LoadWeights, StartTurn
from aegaeon.core.cost import CostModel
from aegaeon.scheduler.job import JobPhase
from aegaeon.scheduler.limits import PoolLimits
from aegaeon.scheduler.policies.paper.batch import Batch
from aegaeon.scheduler.policies.paper.decode_round import set_quotas, steps_per_deadline
from aegaeon.scheduler.policies.paper.paper_instance import PaperInstance
from aegaeon.scheduler.policies.paper.paper_job import PaperJob
from aegaeon.scheduler.policies.paper.paper_turn import PaperTurn
from aegaeon.scheduler.policies.paper.prefill_placement import PrefillPlacement
from aegaeon.scheduler.policies.paper.quota import turn_quotas_s
from aegaeon.scheduler.slab_budget import SlabBudget


class TurnPlanner:
    """Looks at one instance at a time and appends what it must be told to ``out``; a second look says nothing new.

    ``jobs`` and ``instances`` are the scheduler's tables of live requests and live instances.
    """

    def __init__(
        self,
        jobs: Mapping[str, PaperJob],
        instances: Mapping[str, PaperInstance],
        prefill: PrefillPlacement,
        slabs: SlabBudget,
        costs: CostModel,
        limits: PoolLimits,
    ) -> None:
        self._jobs = jobs
        self._instances = instances
        self._prefill = prefill
        self._slabs = slabs
        self._costs = costs
        self._max_quota_s = limits.max_quota_s
        self._turn_ids = count(1)

    def advance(self, state: PaperInstance, now_s: float, out: list[Command]) -> None:
        """Bring the instance's turn up to date."""
        if state.turn is None:
            self._start(state, now_s, out)
        elif not state.turn.ending:
            self._extend(state, state.turn, out)
            self._end_if_due(state, state.turn, out)
        self._prefetch(state, out)

    # -- starting

    def _start(self, state: PaperInstance, now_s: float, out: list[Command]) -> None:
        """Prefill goes first, but not twice in a row while a batch waits: nobody starves on a mixed instance."""
        starts = [self._start_prefill, self._start_decode]
        if state.prefilled_last:
            starts.reverse()
        for start in starts:
            if start(state, now_s, out):
                return

    def _start_prefill(self, state: PaperInstance, now_s: float, out: list[Command]) -> bool:
        group = state.prefill.head
        jobs = self._admitted(group.members) if group else []
        if group is None or not jobs:
            return False
        self._make_kv_room(state, jobs, out)
        self._begin(state, PaperTurn(next(self._turn_ids), group, None, now_s), jobs, out)
        return True

    def _start_decode(self, state: PaperInstance, now_s: float, out: list[Command]) -> bool:
        batch = state.decode.take_turn() or self._new_round(state)
        if batch is None:
            return False
        self._pull_prefills(state, batch)
        quota_s = batch.quota_s
        if quota_s is None and self._prefill_waits(state):
            quota_s = self._quota_beside_prefill(state, batch)
        self._evict_kept(state, [request_id for request_id in state.kept if request_id not in batch.members], out)
        state.kept.clear()  # those that are left are members of the turn
        self._begin(state, PaperTurn(next(self._turn_ids), batch, quota_s, now_s), self._members(batch), out)
        return True

    def _begin(self, state: PaperInstance, turn: PaperTurn, jobs: list[PaperJob], out: list[Command]) -> None:
        evicted = state.residency.admit(turn.model)
        assert evicted is not None, "placed on an instance that cannot hold its weights"
        out += [EvictWeights(state.instance_id, model) for model in evicted]
        prefill, decode = self._enter(turn, jobs)
        keep = isinstance(turn.source, Batch) and state.prefills
        out.append(StartTurn(state.instance_id, turn.turn_id, turn.model, prefill, decode, turn.quota_s, keep))
        state.turn, state.prefetch = turn, None

    def _enter(self, turn: PaperTurn, jobs: list[PaperJob]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        for job in jobs:
            job.turn = turn
            turn.members[job.request_id] = None
        waiting = [job.request_id for job in jobs if job.phase is JobPhase.WAITING]
        decoding = [job.request_id for job in jobs if job.phase is JobPhase.DECODING]
        return tuple(waiting), tuple(decoding)

    def _new_round(self, state: PaperInstance) -> Batch | None:
        state.decode.repack([job for batch in state.decode for job in self._members(batch)])
        batches = list(state.decode)
        steps = [steps_per_deadline(self._costs, batch.model, self._members(batch)) for batch in batches]
        set_quotas(batches, steps, self._costs, self._max_quota_s)
        return state.decode.take_turn()

    def _quota_beside_prefill(self, state: PaperInstance, batch: Batch) -> float:
        """The only batch of a mixed instance shares it with the prefill that waits: a round of the two of them."""
        waiting = state.prefill.next_other_model(batch.model)
        models = [batch.model] if waiting is None else [batch.model, waiting]
        steps = steps_per_deadline(self._costs, batch.model, self._members(batch))
        return turn_quotas_s([steps], sum(map(self._costs.switch_s, models)), self._max_quota_s)[0]

    # -- while it runs

    def _extend(self, state: PaperInstance, turn: PaperTurn, out: list[Command]) -> None:
        if isinstance(turn.source, Batch):
            self._pull_prefills(state, turn.source)
        newcomers = turn.newcomers
        if not newcomers:
            return
        if isinstance(turn.source, Batch):
            jobs = [self._jobs[request_id] for request_id in newcomers]
        else:
            jobs = self._admitted(newcomers)
            self._make_kv_room(state, jobs, out)
        if jobs:
            prefill, decode = self._enter(turn, jobs)
            out.append(ExtendTurn(state.instance_id, turn.turn_id, prefill, decode))

    def _end_if_due(self, state: PaperInstance, turn: PaperTurn, out: list[Command]) -> None:
        """A decode turn without a limit ends as soon as another batch or a prefill waits."""
        unlimited = turn.quota_s is None and isinstance(turn.source, Batch)
        if unlimited and turn.members and (len(state.decode) > 1 or self._prefill_waits(state)):
            turn.ending = True
            out.append(EndTurn(state.instance_id, turn.turn_id))

    def _prefetch(self, state: PaperInstance, out: list[Command]) -> None:
        """Bring in the next different model, once in a turn, if there is room beside the one that runs."""
        turn = state.turn
        if turn is None or state.prefetch is not None:
            return
        target = self._next_model(state, turn)
        if target is not None:
            state.prefetch = target
            resident = target in state.residency
            evicted = state.residency.admit(target, pinned=(turn.model, target))
            if evicted is not None and not resident:
                out += [EvictWeights(state.instance_id, model) for model in evicted]
                out.append(LoadWeights(state.instance_id, target))

    def _next_model(self, state: PaperInstance, turn: PaperTurn) -> str | None:
        """What runs next in another model: decode and prefill alternate where there are both."""
        prefill = state.prefill.next_other_model(turn.model)
        if isinstance(turn.source, Batch):
            return prefill or state.decode.next_other_model(turn.model)
        decode = state.decode.next_model
        return prefill if decode in (None, turn.model) else decode

    # -- prefill

    def _prefill_waits(self, state: PaperInstance) -> bool:
        """Whether a prefill turn could be started here now."""
        group = state.prefill.head
        if group is None:
            return False
        return self._slabs.admits(self._jobs[next(iter(group.members))])

    def _admitted(self, request_ids: Iterable[str]) -> list[PaperJob]:
        """The jobs whose KV fits the slab cache, in order, up to the first that must wait; their KV is reserved."""
        admitted: list[PaperJob] = []
        for request_id in request_ids:
            job = self._jobs[request_id]
            if not (self._slabs.admits(job) or (not admitted and self._quiet())):
                break
            self._slabs.reserve(job)
            admitted.append(job)
        return admitted

    def _quiet(self) -> bool:
        """Whether nothing runs or could run that would free KV; waiting for it would be waiting for ever."""
        busy = any(state.turn or len(state.decode) for state in self._instances.values())
        return not busy and not self._slabs.dropping

    def _pull_prefills(self, state: PaperInstance, batch: Batch) -> None:
        """Let prompts of the model that wait on this mixed instance join the batch that runs, as far as they fit."""
        if not batch.members:
            return  # its turn is about to end
        for group in state.prefill.of_model(batch.model):
            for request_id in list(group.members):
                job = self._jobs[request_id]
                if not (state.decode.fits(batch, job.kv_bytes, job.width) and self._slabs.admits(job)):
                    return
                self._slabs.reserve(job)
                self._prefill.withdraw(job)
                batch.put(request_id, job.kv_bytes, job.width)
                job.batch = batch

    # -- device KV

    def _make_kv_room(self, state: PaperInstance, jobs: list[PaperJob], out: list[Command]) -> None:
        """Prompts go one at a time: where the largest does not fit beside the KV that was kept, that goes."""
        need_bytes = max((job.kv_bytes for job in jobs), default=0)
        if need_bytes and sum(state.kept.values()) + need_bytes > state.spec.kv_bytes:
            self._evict_kept(state, list(state.kept), out)
            state.kept.clear()

    def _evict_kept(self, state: PaperInstance, request_ids: list[str], out: list[Command]) -> None:
        if request_ids:
            out.append(EvictKv(state.instance_id, tuple(request_ids)))

    def _members(self, batch: Batch) -> list[PaperJob]:
        return [self._jobs[request_id] for request_id in batch.members]
