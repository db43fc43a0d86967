"""The simulated side of the fidelity benchmark: the same pool and the same requests on a virtual clock.

Does not know: the real pool, what is compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from aegaeon.core.cost import ProfiledCosts
from aegaeon.core.instance import InstanceSpec, Role
from aegaeon.core.model import ModelSpec
from aegaeon.core.profile import LatencyProfile
from aegaeon.core.record import RequestRecord
from aegaeon.core.request import Request
from aegaeon.core.slo import Slo
from aegaeon.latency.profile_book import ProfileEntry
from aegaeon.scheduler.limits import PoolLimits
from aegaeon.scheduler.registry import make_scheduler
from benchmark.fidelity_pool import BATCH, BLOCK_TOKENS, CHUNK_TOKENS, CONTEXT_TOKENS, KV_CACHE_BYTES, SLAB_BYTES
from benchmark.job import Job
from sim.constants import Constants
from sim.model_facts import SimModel
from sim.system import Device, Layout, PlacedInstance
from sim.tally import Tally
from sim.world import World

_FREE = 1e15  # bytes per second of what is not copied


@dataclass(frozen=True, slots=True)
class Machine:
    """Measured constants of the machine beside the models' profiles.

    ``hand_over_s``: of a turn, beside its steps; ``told_hand_over_s``: what schedulers are told of it (the profiles').
    ``prefill_ratio``, ``decode_ratio``: a step in the pool, beside the other instance and all else, over the same step
    in the profile. ``way_s``: of a request to the pool and of its tokens back, when idle.
    """

    hand_over_s: float
    told_hand_over_s: float
    prefill_ratio: float
    decode_ratio: float
    way_s: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def simulate(
    jobs: Sequence[Job], slo: Slo, profiles: Mapping[str, ProfileEntry], machine: Machine
) -> list[RequestRecord]:
    """The records of the jobs, as their clients would see them; in the order of ``jobs``."""
    models = {name: _sim_model(name, entry, slo, machine) for name, entry in profiles.items()}
    arrivals = [(_request(job, slo, machine), job.new_tokens) for job in jobs]
    tally = Tally(keep_text=False, keep_records=True)
    specs = [model.spec for model in models.values()]
    costs = ProfiledCosts(
        {spec.name: spec for spec in specs},
        {name: entry.profile for name, entry in profiles.items()},
        _FREE,
        _FREE,
        machine.told_hand_over_s,
    )
    limits = PoolLimits(KV_CACHE_BYTES, SLAB_BYTES)
    world = World(
        _layout(specs),
        models,
        _constants(specs, machine),
        lambda _instances: make_scheduler("aegaeon", specs, costs, limits),
        arrivals,
        tally,
    )
    world.run()
    records = {record.request_id: record for record in tally.records}
    return [replace(records[job.request_id], arrival_s=job.time_s) for job in jobs]


def _request(job: Job, slo: Slo, machine: Machine) -> Request:
    """It reaches the pool later than it was sent."""
    return Request(job.request_id, job.model, job.time_s + machine.way_s, job.prompt_tokens, job.new_tokens, slo)


def _sim_model(name: str, entry: ProfileEntry, slo: Slo, machine: Machine) -> SimModel:
    """As fast as in the pool; the scheduler is told the profile."""
    shape = replace(entry.kv_shape, block_tokens=BLOCK_TOKENS)
    return SimModel(
        ModelSpec(name, entry.weight_bytes, shape, CONTEXT_TOKENS, slo), _in_pool(entry.profile, machine), name
    )


def _in_pool(profile: LatencyProfile, machine: Machine) -> LatencyProfile:
    prefill, decode = machine.prefill_ratio, machine.decode_ratio
    return LatencyProfile(
        profile.p0_s * prefill,
        profile.p1_s * prefill,
        profile.p2_s * prefill,
        profile.d0_s * decode,
        profile.d1_s * decode,
        profile.d2_s * decode,
    )


def _layout(specs: Sequence[ModelSpec]) -> Layout:
    """A core for each instance; what they take from each other is in the ratios."""
    weight_bytes = 2 * sum(spec.weight_bytes for spec in specs)
    placed = tuple(
        PlacedInstance(InstanceSpec(role.value, role, KV_CACHE_BYTES, weight_bytes, len(specs), BATCH), index)
        for index, role in enumerate((Role.PREFILL, Role.DECODE))
    )
    memory_bytes = 2 * (KV_CACHE_BYTES + weight_bytes)
    return Layout(tuple(Device(f"cpu-{index}", memory_bytes) for index in range(len(placed))), placed)


def _constants(specs: Sequence[ModelSpec], machine: Machine) -> Constants:
    return Constants(
        weight_bytes_per_s=_FREE,
        kv_bytes_per_s=_FREE,
        disk_bytes_per_s=_FREE,
        host_memory_bytes=2 * sum(spec.weight_bytes for spec in specs),
        kv_cache_bytes=KV_CACHE_BYTES,
        slab_bytes=SLAB_BYTES,
        page_bytes=2 << 20,
        prefill_chunk_tokens=CHUNK_TOKENS,
        control_s=machine.hand_over_s,
    )
