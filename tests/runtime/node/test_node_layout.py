"""The same pool, laid out by the runtime and by the simulator."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aegaeon.core.config import InstanceConfig, PoolConfig
from aegaeon.core.instance import InstanceSpec, Role
from aegaeon.core.service import ServiceError
from aegaeon.latency.estimate.device_spec import device_spec
from aegaeon.runtime.node.node import NodeOptions, node_pool, plan_instances
from aegaeon.scheduler.policies.registry import POLICIES
from sim.records.tally import Tally
from sim.study.hardware import Hardware
from sim.study.run import make_costs, pool_of
from sim.systems.systems import find_system
from tests.worlds.sim_pool import CONSTANTS, make_scenario

SCENARIO = make_scenario([(0.0, model, 10, 5) for model in range(4)])
COSTS = make_costs(SCENARIO, CONSTANTS)
MIXED = (InstanceConfig(Role.MIXED, 3),)
APART = (InstanceConfig(Role.PREFILL, 1), InstanceConfig(Role.DECODE, 2))
IN_PLACE = {"device": "cpu", "copy_to_device": False}
COPYING = {"device": "cpu", "copy_to_device": True, "device_bytes": 20_000}
GPU = {"device": "cuda", "copy_to_device": True, "device_bytes": 20_000}


def options(policy: str, instances: tuple[InstanceConfig, ...], **device: object) -> NodeOptions:
    config = PoolConfig(models=(), policy=policy, instances=instances, max_batch_requests=32, **device)
    return NodeOptions(config, "node7", 400 * CONSTANTS.slab_bytes, 60_000, 1)


def nameless(specs: list[InstanceSpec]) -> list[InstanceSpec]:
    return [replace(spec, instance_id="") for spec in specs]


@pytest.mark.parametrize("device", [IN_PLACE, COPYING, GPU], ids=["in place", "copying", "gpu"])
@pytest.mark.parametrize(
    ("policy", "instances"),
    [(policy.name, MIXED) for policy in POLICIES.values()] + [("aegaeon", APART), ("slack", APART)],
)
def test_both_worlds_lay_a_pool_out_alike(policy: str, instances: tuple[InstanceConfig, ...], device: dict) -> None:
    chosen = options(policy, instances, **device)
    real = plan_instances(chosen, SCENARIO.specs, COSTS)
    hardware = Hardware(device_spec("h100"), 1, node_pool(chosen, SCENARIO.specs), CONSTANTS)
    world = pool_of(find_system(policy), SCENARIO, hardware).world(SCENARIO.arrivals, Tally())
    simulated = [instance.spec for node in world.nodes for instance in node.instances.values()]
    assert nameless(real) == nameless(simulated)
    assert [spec.role for spec in real] == [group.role for group in instances for _ in range(group.count)]
    assert real[0].instance_id == f"node7-{instances[0].role}-0"


def test_a_model_that_fits_no_instance_is_refused_with_what_helps() -> None:
    chosen = options("slack", MIXED, **COPYING | {"device_bytes": 1000})
    with pytest.raises(ServiceError, match=r"largest model has 1000 bytes .*: raise --device-memory to at least 1333"):
        plan_instances(chosen, SCENARIO.specs, COSTS)
    chosen = replace(options("slack", MIXED, **IN_PLACE), weight_cache_bytes=2700)
    with pytest.raises(ServiceError, match=r"raise --weight-cache to at least 3000 bytes, or run fewer than 3"):
        plan_instances(chosen, SCENARIO.specs, COSTS)
