"""Whatever numbers a request brings, no policy fails over them: a driver that its scheduler fails serves nobody."""

from __future__ import annotations

import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aegaeon.core.instance import Role
from aegaeon.core.slo import LEAST_TARGET_S, MOST_TARGET_S, Slo
from tests.worlds.toy_play import LAYOUTS
from tests.worlds.toy_world import ToyWorld, make_costs, make_instance, make_limits, make_models

POLICIES = {"slack": "three mixed", "aegaeon": "all", "sllm": "three mixed"}
LEAST, MOST = 5e-324, sys.float_info.max
TARGETS_S = st.one_of(
    st.sampled_from([LEAST, sys.float_info.min, LEAST_TARGET_S, MOST_TARGET_S, MOST]),
    st.floats(1e-3, 1.0),
    st.floats(1450.0, 1550.0),  # about where what a turn gains becomes too little for a number
    st.floats(LEAST, MOST),
)
REQUESTS = st.lists(
    st.tuples(
        st.builds(Slo, TARGETS_S, TARGETS_S),
        st.integers(0, 4),  # its model
        st.sampled_from([1, 16, 4000, 2**31 - 1]),  # tokens of its prompt
        st.sampled_from([1, 16, 2**31 - 1]),  # tokens that it may have
        st.floats(0.0, 4000.0),  # seconds until it comes
    ),
    min_size=1,
    max_size=12,
)


def make_world(policy: str, step_s: float = 0.02) -> ToyWorld:
    models = make_models(5)
    world = ToyWorld(models, make_limits(), make_costs(models, step_s=step_s), policy)
    for index, role in enumerate(LAYOUTS[POLICIES[policy]]):
        world.join(make_instance(f"i{index}", role))
    return world


@pytest.mark.parametrize("policy", list(POLICIES))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(requests=REQUESTS, step_s=st.sampled_from([1e-4, 0.02, 10.0]))
def test_any_targets_and_sizes_end_well(
    policy: str, requests: list[tuple[Slo, int, int, int, float]], step_s: float
) -> None:
    world = make_world(policy, step_s)
    for number, (slo, model, prompt, limit, pause_s) in enumerate(requests):
        world.now_s += pause_s
        world.arrive(f"r{number}", f"m{model}", prompt, limit, min(limit, 20), slo)
        world.deliver_all()
        for instance_id in world.instances:
            world.step(instance_id)
    world.run()
    assert world.unfinished() == []


@pytest.mark.parametrize("ttft_s", range(1480, 1495))
def test_a_request_that_is_due_in_half_an_hour_is_served_by_an_idle_pool(ttft_s: int) -> None:
    """The weight of a turn that far ahead is the least number there is; times a short step it is none."""
    world = ToyWorld(make_models(1), make_limits(), policy="slack")
    world.join(make_instance("i0", Role.MIXED))
    world.arrive("r", "m0", slo=Slo(float(ttft_s)))
    world.run()
    assert world.unfinished() == []


def test_tokens_that_are_due_at_once_leave_every_batch_a_quota() -> None:
    """The least target over a long step is no number of steps any more, and quotas divide by it."""
    world = make_world("aegaeon", step_s=10.0)
    for number in range(6):
        world.arrive(f"r{number}", f"m{number % 3}", slo=Slo(1.0, LEAST))
    world.run()
    assert world.unfinished() == []
