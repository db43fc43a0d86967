"""One simulation: a system, a scenario, hardware; what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from aegaeon.core.config import PREFIX_CACHE
from aegaeon.core.cost import ProfiledCosts
from aegaeon.scheduler.limits import PoolLimits
from aegaeon.scheduler.policy import Policy
from sim.records.fragmentation import FragmentationSampler
from sim.records.tally import Tally
from sim.study.hardware import Hardware
from sim.study.pool import SimPool
from sim.study.scenario import Scenario
from sim.world.constants import Constants
from sim.world.kept_kv import KeptKv
from sim.world.observer import WorldObserver
from sim.world.world import World

_UNLIMITED_QUEUE = 1 << 30


@dataclass(frozen=True, slots=True)
class RunResult:
    """``summary``: plain numbers (see ``sim.records.output``). ``texts``: token times by request id."""

    summary: dict[str, Any]
    texts: Mapping[str, str]


def simulate(
    system: Policy,
    scenario: Scenario,
    hardware: Hardware,
    tally: Tally | None = None,
    observer: WorldObserver | None = None,
    prefix_cache: str = PREFIX_CACHE,
) -> RunResult:
    """Run to the end; ``prefix_cache``: see ``SimPool``.

    Raises ``NoPlacementError`` where the system cannot hold the scenario's models.
    """
    tally = tally or Tally()
    world = pool_of(system, scenario, hardware, prefix_cache).world(
        scenario.arrivals, Observers(tally, observer) if observer else tally
    )
    sampler = FragmentationSampler(world)
    world.run(sampler.look)
    return RunResult(_summary(tally, world, sampler), tally.texts)


def pool_of(system: Policy, scenario: Scenario, hardware: Hardware, prefix_cache: str = PREFIX_CACHE) -> SimPool:
    """The pool of a run, whose schedulers know what the world charges."""
    constants = hardware.constants
    if system.prefill_chunk_tokens is not None:
        constants = replace(constants, prefill_chunk_tokens=system.prefill_chunk_tokens)
    if system.step_quantum_s is not None:
        constants = replace(constants, step_quantum_s=system.step_quantum_s)
    costs = make_costs(scenario, constants)
    limits = make_limits(constants)
    return SimPool(system, scenario.models, hardware.pool, constants, costs, limits, scenario.contents, prefix_cache)


def make_costs(scenario: Scenario, constants: Constants) -> ProfiledCosts:
    """What schedulers know of costs: exactly what the world charges, without contention."""
    return ProfiledCosts(
        {name: model.spec for name, model in scenario.models.items()},
        {name: model.profile for name, model in scenario.models.items()},
        constants.weight_bytes_per_s,
        constants.kv_bytes_per_s,
        constants.switch_overhead_s,
    )


def make_limits(constants: Constants) -> PoolLimits:
    """One node's limits. Nobody is turned away for a long queue: the experiments count late tokens, not refusals."""
    return PoolLimits(
        constants.kv_cache_bytes,
        constants.slab_bytes,
        max_queued_requests=_UNLIMITED_QUEUE,
        host_weight_bytes=constants.host_memory_bytes,
    )


class Observers:
    """Two observers as one."""

    def __init__(self, first: WorldObserver, second: WorldObserver) -> None:
        self._both = (first, second)

    def __getattr__(self, name: str) -> Any:
        methods = [getattr(observer, name) for observer in self._both]

        def both(*arguments: Any, **named: Any) -> None:
            for method in methods:
                method(*arguments, **named)

        return both


def _summary(tally: Tally, world: World, sampler: FragmentationSampler) -> dict[str, Any]:
    busy_s = sum(instance.busy_s for node in world.nodes for instance in node.instances.values())
    capacity_s = len(world.layout.devices) * max(tally.last_s, 1e-9)
    return {
        **tally.summary(),
        "events": world.events,
        "devices": len(world.layout.devices),
        "busy_share": busy_s / capacity_s,
        "disk_reads": sum(node.host.reads for node in world.nodes),
        "fragmentation": sampler.usage(),
        **_reuse([node.kept for node in world.nodes if node.kept is not None]),
    }


def _reuse(kept: Sequence[KeptKv]) -> dict[str, Any]:
    """Nothing where no KV is reused."""
    if not kept:
        return {}
    prompt_tokens, found_tokens = sum(one.prompt_tokens for one in kept), sum(one.found_tokens for one in kept)
    return {
        "prefix_cache": {
            "policy": kept[0].policy,
            "prompt_tokens": prompt_tokens,
            "found_tokens": found_tokens,
            "hit_rate": found_tokens / max(1, prompt_tokens),
            "evicted_bytes": sum(one.evicted_bytes for one in kept),
            "kept_bytes": sum(one.kept_bytes for one in kept),
            "disk_tokens": sum(one.disk_tokens for one in kept),
        }
    }
