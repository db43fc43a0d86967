"""Small scenarios for the simulator: models of a few bytes, and a run whose books are checked at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from aegaeon.core.kv_shape import KvShape, LayerKv
from aegaeon.core.model import ModelSpec
from aegaeon.core.profile import LatencyProfile
from aegaeon.core.record import RequestRecord
from aegaeon.core.request import Request
from aegaeon.core.slo import Slo
from aegaeon.latency.estimate.device_spec import device_spec
from aegaeon.scheduler.layout import PoolDevice, PoolSpec
from aegaeon.scheduler.policy import Policy
from sim.records.tally import Tally
from sim.study.hardware import Hardware
from sim.study.run import pool_of
from sim.study.scenario import Scenario
from sim.systems.systems import find_system
from sim.world.constants import Constants
from sim.world.model_facts import SimModel
from sim.world.world import World

PROFILE = LatencyProfile(p0_s=0.01, p1_s=1e-4, p2_s=1e-8, d0_s=0.01, d1_s=1e-6, d2_s=1e-4)
SHAPES = (KvShape((LayerKv(1, 4, 4),)), KvShape((LayerKv(2, 4, 4),)))
WEIGHT_BYTES = 1000
SLAB_BYTES = 16 * SHAPES[0].block_bytes
CONSTANTS = Constants(
    weight_bytes_per_s=2000.0,
    kv_bytes_per_s=1e6,
    disk_bytes_per_s=500.0,
    host_memory_bytes=10**9,
    kv_cache_bytes=1000 * SLAB_BYTES,
    slab_bytes=SLAB_BYTES,
    page_bytes=100,
)

Arrivals = Sequence[tuple[float, int, int, int]]  # time, model, prompt tokens, new tokens


def make_scenario(arrivals: Arrivals, models: int = 4, weight_bytes: int = WEIGHT_BYTES) -> Scenario:
    specs = [ModelSpec(f"m{index}", weight_bytes, SHAPES[index % 2], 4096) for index in range(models)]
    requests = [
        (Request(str(index), f"m{model}", time_s, prompt, new, Slo(), new), new)
        for index, (time_s, model, prompt, new) in enumerate(sorted(arrivals))
    ]
    return Scenario({spec.name: SimModel(spec, PROFILE, spec.name) for spec in specs}, tuple(requests), 1, "test")


def make_hardware(devices: int = 4, nodes: int = 1, memory_bytes: int = 400_000, **constants: float) -> Hardware:
    """``constants`` replace those of ``CONSTANTS``."""
    pool = tuple(PoolDevice(f"d{index}", memory_bytes, index * nodes // devices) for index in range(devices))
    return Hardware(device_spec("h100"), 1, PoolSpec(pool), replace(CONSTANTS, **constants))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Played:
    """A finished run."""

    world: World
    tally: Tally

    @property
    def records(self) -> dict[str, RequestRecord]:
        return {record.request_id: record for record in self.tally.records}


def play(scenario: Scenario, hardware: Hardware, system: Policy | str = "aegaeon", prefix_cache: str = "slo") -> Played:
    """Run, and check what must hold after any run."""
    tally = Tally(keep_records=True)
    system = find_system(system) if isinstance(system, str) else system
    world = pool_of(system.checked(), scenario, hardware, prefix_cache).world(scenario.arrivals, tally)
    world.run()
    check_requests(scenario, tally)
    check_ledgers(world)
    return Played(world, tally)


def check_requests(scenario: Scenario, tally: Tally) -> None:
    """Every request ended exactly once, with all its tokens or a reason, none of them before it could be there."""
    assert sorted(record.request_id for record in tally.records) == sorted(
        request.request_id for request, _ in scenario.arrivals
    )
    targets = {request.request_id: new for request, new in scenario.arrivals}
    for record in tally.records:
        if record.error is not None:
            continue
        times = record.token_times_s
        assert len(times) == targets[record.request_id]
        assert all(later > earlier for earlier, later in pairwise(times))
        least_s = PROFILE.prefill_s((1 if scenario.contents else record.prompt_tokens,))
        assert times[0] >= record.arrival_s + least_s - 1e-9
        assert record.parts is not None
        parts = record.parts
        spent_s = parts.prefill_wait_s + parts.prefill_s + parts.decode_wait_s + parts.decode_s
        spent_s += parts.control_s + parts.block_s
        assert abs(spent_s - (times[-1] - record.arrival_s)) < 1e-6, "the six parts are the request's life"
    assert tally.tokens == sum(len(record.token_times_s) for record in tally.records)


def check_ledgers(world: World) -> None:
    """Nothing is left but weights and kept KV, which nobody holds."""
    for node in world.nodes:
        node.slabs.check_integrity()
        if node.kept is not None:
            node.kept.check_integrity()
            assert node.slabs.live_blocks == node.kept.blocks
            assert node.slabs.used_bytes == node.kept.kept_bytes
            node.kept.clear()
        assert node.slabs.live_blocks == 0
        assert node.slabs.used_bytes == 0
        assert node.slabs.assigned_bytes == 0
        assert not node.requests
        for device in node.devices:
            device.pages.check_integrity()
        for instance in node.instances.values():
            assert instance.kv_bytes == 0
            assert instance.turn is None
