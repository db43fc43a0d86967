"""The simulated side of the suite's pool: the same requests, capacities and profiles on a virtual clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import median

from aegaeon.core.config import PoolConfig
from aegaeon.core.cost import CostModel, ProfiledCosts
from aegaeon.core.model import ModelSpec
from aegaeon.core.record import RequestRecord
from aegaeon.core.slo import Slo
from aegaeon.latency.files.profile_book import ProfileEntry
from aegaeon.latency.online.costs import make_costs
from aegaeon.latency.online.node_device import node_device
from aegaeon.memory.weight_chunks import chunk_bytes
from aegaeon.runtime.node.node import NodeOptions, node_pool
from aegaeon.scheduler.layout import PlacedInstance
from aegaeon.scheduler.limits import PoolLimits
from aegaeon.scheduler.log import LogEntry, LoggingScheduler, decode
from aegaeon.scheduler.policies.registry import find_policy
from aegaeon.scheduler.policy import Policy
from aegaeon.scheduler.scheduler import Scheduler
from benchmark.e2e.job import ReplayJob
from sim.study.pool import SimPool, simulate_pool
from sim.world.constants import Constants
from sim.world.model_facts import SimModel

_DISK_BYTES_PER_S = 1e9  # of no account: every model has been used before


def simulate(
    jobs: Sequence[ReplayJob],
    slo: Slo,
    config: PoolConfig,
    kv_cache_bytes: int,
    weight_cache_bytes: int,
    measured: Mapping[str, ProfileEntry],
) -> tuple[list[RequestRecord], list[LogEntry]]:
    """The records of the jobs, in their order, and the scheduler's log."""
    specs = [_spec(entry, config, weight_cache_bytes) for entry in measured.values()]
    threads = config.threads_per_instance or 1
    costs = make_costs(specs, {}, measured, node_device(config, threads).rates)
    options = NodeOptions(config, "node0", kv_cache_bytes, weight_cache_bytes, threads)
    lines = list[str]()
    pool = SimPool(
        _logging(find_policy(config.policy), lines.append),
        {spec.name: SimModel(spec, measured[spec.name].profile, spec.name) for spec in specs},
        node_pool(options, specs),
        _constants(config, kv_cache_bytes, weight_cache_bytes, measured, costs),
        costs,
        PoolLimits(kv_cache_bytes, config.slab_bytes, max_queued_requests=config.max_queued_requests),
    )
    records = simulate_pool(pool, [job.simulated(slo) for job in jobs])
    return records, [decode(line) for line in lines]


def _logging(policy: Policy, write: Callable[[str], object]) -> Policy:
    """The policy, whose scheduler writes its log."""

    def scheduler(
        models: Sequence[ModelSpec], costs: CostModel, limits: PoolLimits, instances: Sequence[PlacedInstance]
    ) -> Scheduler:
        return LoggingScheduler(policy.scheduler(models, costs, limits, instances), write)

    return replace(policy, scheduler=scheduler)


def _spec(entry: ProfileEntry, config: PoolConfig, weight_cache_bytes: int) -> ModelSpec:
    """Weights take whole chunks of the host cache."""
    chunk = chunk_bytes(weight_cache_bytes)
    weight_bytes = -(-entry.weight_bytes // chunk) * chunk
    shape = replace(entry.kv_shape, block_tokens=config.block_tokens)
    return ModelSpec(entry.model, weight_bytes, shape, entry.max_context_tokens)


def _constants(
    config: PoolConfig,
    kv_cache_bytes: int,
    weight_cache_bytes: int,
    measured: Mapping[str, ProfileEntry],
    costs: ProfiledCosts,
) -> Constants:
    hand_overs_s = [entry.hand_over_s for entry in measured.values() if entry.hand_over_s is not None]
    return Constants(
        weight_bytes_per_s=costs.weight_bytes_per_s,
        kv_bytes_per_s=costs.kv_bytes_per_s,
        disk_bytes_per_s=_DISK_BYTES_PER_S,
        host_memory_bytes=weight_cache_bytes,
        kv_cache_bytes=kv_cache_bytes,
        slab_bytes=config.slab_bytes,
        page_bytes=config.page_bytes,
        prefill_chunk_tokens=config.prefill_chunk_tokens,
        control_s=median(hand_overs_s) if hand_overs_s else 0.0,
        mixed_overlap=1.0 if config.device == "cuda" else 0.0,  # on a processor tokens are computed one after another
    )
