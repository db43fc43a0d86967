"""The simulated side of the fidelity benchmark: the same pool and the same requests on a virtual clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from aegaeon.core.cost import ProfiledCosts
from aegaeon.core.instance import Role
from aegaeon.core.model import ModelSpec
from aegaeon.core.record import RequestRecord
from aegaeon.core.slo import Slo
from aegaeon.latency.files.profile_book import ProfileEntry
from aegaeon.scheduler.layout import PoolDevice, PoolSpec, Rooms
from aegaeon.scheduler.limits import PoolLimits
from aegaeon.scheduler.policies.registry import find_policy
from benchmark.e2e.job import ReplayJob
from benchmark.fidelity.pool import BATCH, BLOCK_TOKENS, CHUNK_TOKENS, CONTEXT_TOKENS, KV_CACHE_BYTES, SLAB_BYTES
from benchmark.fidelity.turns import TurnCosts
from sim.study.pool import SimPool, simulate_pool
from sim.world.constants import Constants
from sim.world.model_facts import SimModel

_FREE = 1e15  # bytes per second of what is not copied


@dataclass(frozen=True, slots=True)
class MeasuredMachine:
    """Measured constants of the machine beside the models' profiles.

    ``turns``: of the pool. ``told_hand_over_s``: what schedulers are told of the hand-over (the profiles').
    ``way_s``: of a request to the pool and of its tokens back.
    """

    turns: TurnCosts
    told_hand_over_s: float
    way_s: float

    def slower(self, factor: float) -> MeasuredMachine:
        """One that takes ``factor`` times as long for everything that its instance does."""
        return replace(self, turns=self.turns.slower(factor))


def simulate(
    policy: str, jobs: Sequence[ReplayJob], slo: Slo, profiles: Mapping[str, ProfileEntry], machine: MeasuredMachine
) -> list[RequestRecord]:
    """The records of the jobs under a policy, as their clients would see them; in the order of ``jobs``."""
    models = {name: _sim_model(name, entry, slo, machine) for name, entry in profiles.items()}
    specs = [model.spec for model in models.values()]
    costs = ProfiledCosts(
        {spec.name: spec for spec in specs},
        {name: entry.profile for name, entry in profiles.items()},
        _FREE,
        _FREE,
        machine.told_hand_over_s,
    )
    pool = SimPool(
        find_policy(policy).checked(),
        models,
        _pool(specs),
        _constants(specs, machine),
        costs,
        PoolLimits(KV_CACHE_BYTES, SLAB_BYTES),
    )
    records = simulate_pool(pool, [job.simulated(slo, machine.way_s) for job in jobs])
    return [replace(record, arrival_s=job.time_s) for record, job in zip(records, jobs, strict=True)]


def _sim_model(name: str, entry: ProfileEntry, slo: Slo, machine: MeasuredMachine) -> SimModel:
    """A model as fast as in the pool; the scheduler is told the profile."""
    shape = replace(entry.kv_shape, block_tokens=BLOCK_TOKENS)
    spec = ModelSpec(name, entry.weight_bytes, shape, CONTEXT_TOKENS, slo)
    return SimModel(spec, machine.turns.in_pool(entry.profile), name)


def _pool(specs: Sequence[ModelSpec]) -> PoolSpec:
    """One instance, which has a core for itself."""
    rooms = Rooms(2 * sum(spec.weight_bytes for spec in specs), KV_CACHE_BYTES, len(specs))
    device = PoolDevice("cpu", rooms.weight_bytes + rooms.kv_bytes, rooms=rooms)
    return PoolSpec((device,), roles=(Role.MIXED,), max_batch_requests=BATCH)


def _constants(specs: Sequence[ModelSpec], machine: MeasuredMachine) -> Constants:
    return Constants(
        weight_bytes_per_s=_FREE,
        kv_bytes_per_s=_FREE,
        disk_bytes_per_s=_FREE,
        host_memory_bytes=2 * sum(spec.weight_bytes for spec in specs),
        kv_cache_bytes=KV_CACHE_BYTES,
        slab_bytes=SLAB_BYTES,
        page_bytes=2 << 20,
        prefill_chunk_tokens=CHUNK_TOKENS,
        control_s=machine.turns.hand_over_s,
        mixed_overlap=machine.turns.mixed_overlap,
    )
