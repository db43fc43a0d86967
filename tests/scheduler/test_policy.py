"""What a policy is: one record that every world takes what it needs from."""

from __future__ import annotations

import pytest

from aegaeon.core.instance import Role
from aegaeon.scheduler.layout import NoPlacementError, PoolDevice, PoolSpec, Rooms
from aegaeon.scheduler.policies.registry import POLICIES, UnknownPolicyError, find_policy
from tests.worlds.toy_world import make_costs, make_models

MODELS = make_models(3)
COSTS = make_costs(MODELS)
MEMORY_BYTES = 10**7
ROOMS = Rooms(weight_bytes=4000, kv_bytes=1000, resident_models=2)


def decided(*roles: Role, rooms: Rooms = ROOMS) -> PoolSpec:
    devices = tuple(PoolDevice(f"d{index}", 5000, rooms=rooms) for index in range(len(roles)))
    return PoolSpec(devices, roles=roles, max_batch_requests=7)


@pytest.mark.parametrize("policy", POLICIES.values(), ids=lambda policy: policy.name)
def test_what_the_operator_has_decided_holds_under_every_policy(policy) -> None:
    layout = policy.lay_out(decided(Role.MIXED, Role.MIXED), MODELS, {}, COSTS)
    specs = [placed.spec for placed in layout.instances]
    assert [placed.device for placed in layout.instances] == [0, 1]
    assert {spec.role for spec in specs} == {Role.MIXED}
    assert {(spec.weight_bytes, spec.kv_bytes) for spec in specs} == {(4000, 1000)}
    assert {(spec.max_resident_models, spec.max_batch_requests, spec.memory_bytes) for spec in specs} == {(2, 7, None)}


@pytest.mark.parametrize("policy", POLICIES.values(), ids=lambda policy: policy.name)
def test_where_nothing_is_decided_every_device_gets_an_instance_within_its_memory(policy) -> None:

    pool = PoolSpec(tuple(PoolDevice(f"d{index}", MEMORY_BYTES) for index in range(4)))
    layout = policy.lay_out(pool, MODELS, {}, COSTS)
    assert {placed.device for placed in layout.instances} == {0, 1, 2, 3}
    assert {placed.spec.role for placed in layout.instances} <= policy.roles
    assert all(placed.spec.total_bytes <= MEMORY_BYTES for placed in layout.instances)


def test_roles_that_a_policy_does_not_drive_are_refused() -> None:
    with pytest.raises(NoPlacementError, match="the policy sllm does not drive decode or prefill instances"):
        find_policy("sllm").lay_out(decided(Role.PREFILL, Role.DECODE), MODELS, {}, COSTS)


def test_a_room_that_is_too_small_for_the_largest_model_is_no_placement() -> None:
    with pytest.raises(NoPlacementError, match=r"the largest model has .* bytes of weights, but d0 has room for 1"):
        find_policy("slack").lay_out(decided(Role.MIXED, rooms=Rooms(1, 1000, 2)), MODELS, {}, COSTS)


def test_names_titles_and_looks_are_different() -> None:
    policies = POLICIES.values()
    assert [policy.name for policy in policies] == list(POLICIES)
    assert len({policy.title for policy in policies}) == len({policy.style for policy in policies}) == len(POLICIES)


def test_an_unknown_policy_is_refused_by_name() -> None:
    with pytest.raises(UnknownPolicyError, match=r"'slacc'; there are: slack, "):
        find_policy("slacc")
