"""The simulated side of the suite's pool: the same requests, capacities and profiles on a virtual clock.

Does not know: the real pool.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median

from aegaeon.core.config import PoolConfig
from aegaeon.core.cost import ProfiledCosts
from aegaeon.core.model import ModelSpec
from aegaeon.core.record import RequestRecord
from aegaeon.core.request import Request
from aegaeon.core.slo import Slo
from aegaeon.latency.files.profile_book import ProfileEntry
from aegaeon.latency.online.costs import make_costs
from aegaeon.latency.online.node_device import node_device
from aegaeon.runtime.node.host_weights import chunk_bytes
from aegaeon.runtime.node.node import NodeOptions, plan_instances
from aegaeon.scheduler.layout import Layout, PlacedInstance, PoolDevice
from aegaeon.scheduler.limits import PoolLimits
from aegaeon.scheduler.log import LogEntry, LoggingScheduler, decode
from aegaeon.scheduler.policies.registry import make_scheduler
from benchmark.e2e.job import ReplayJob
from sim.records.tally import Tally
from sim.world.constants import Constants
from sim.world.model_facts import SimModel
from sim.world.world import World

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
    (instance,) = plan_instances(options, specs, costs)
    device = PoolDevice(config.device, instance.total_bytes)
    limits = PoolLimits(kv_cache_bytes, config.slab_bytes, max_queued_requests=config.max_queued_requests)
    tally, lines = Tally(keep_text=False, keep_records=True), list[str]()
    World(
        Layout((device,), (PlacedInstance(instance, 0),)),
        {spec.name: SimModel(spec, measured[spec.name].profile, spec.name) for spec in specs},
        _constants(config, kv_cache_bytes, weight_cache_bytes, measured, costs),
        lambda _: LoggingScheduler(make_scheduler(config.policy, specs, costs, limits), lines.append),
        [(_request(job, slo), job.new_tokens) for job in jobs],
        tally,
    ).run()
    records = {record.request_id: record for record in tally.records}
    return [records[job.request_id] for job in jobs], [decode(line) for line in lines]


def _request(job: ReplayJob, slo: Slo) -> Request:
    return Request(job.request_id, job.model, job.time_s, job.prompt_tokens, job.new_tokens, slo)


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
