"""The policy ``slack`` in the toy world: whatever happens, in whatever order, its checks hold and all work is done."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aegaeon.core.instance import Role
from aegaeon.scheduler.log import replay
from tests.worlds.toy_play import LAYOUTS, Action, Play
from tests.worlds.toy_world import SMALL, WIDE, ToyWorld, make_limits, make_models

CALM = ["arrive"] * 6 + ["step"] * 20 + ["deliver"] * 12 + ["cancel"]
FAULTY = [*CALM, "cancel", "fail_request", "fail_turn", "lose", "restart", "restart", "break_model"]
ACTIONS = st.sampled_from([CALM, FAULTY]).flatmap(
    lambda kinds: st.lists(st.tuples(st.sampled_from(kinds), st.integers(0, 9999)), min_size=80, max_size=250)
)


class SlackPlay(Play):
    """A toy world under ``slack``; host memory holds ``hosted`` of five models (None: as many as there are)."""

    def __init__(
        self, roles: list[Role], slabs: int, kv_blocks: int, max_resident_models: int, hosted: int | None
    ) -> None:
        super().__init__([], slabs, kv_blocks, max_resident_models)
        models = make_models(5, shapes=(SMALL, WIDE))
        host_bytes = None if hosted is None else hosted * models[0].weight_bytes
        limits = replace(make_limits(slabs=slabs), host_weight_bytes=host_bytes)
        self.world = ToyWorld(models, limits, policy="slack")
        self.roles = roles
        for role in roles:
            self.join(role)


@pytest.mark.parametrize("layout", list(LAYOUTS))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(
    actions=ACTIONS,
    slabs=st.sampled_from([4, 6, 100]),
    kv_blocks=st.sampled_from([24, 1000]),
    max_resident_models=st.sampled_from([1, 2, 4]),
    hosted=st.sampled_from([None, 1, 3]),
)
def test_any_history_ends_well(
    layout: str, actions: list[Action], slabs: int, kv_blocks: int, max_resident_models: int, hosted: int | None
) -> None:
    play = SlackPlay(LAYOUTS[layout], slabs, kv_blocks, max_resident_models, hosted)
    for action in actions:
        play.act(action)
    play.finish()
    world = play.world
    assert world.unfinished() == []
    assert all(toy.ends == 1 for toy in world.requests.values())
    assert all(toy.blocks == 0 for toy in world.requests.values())
    assert all(instance.on_device == set() for instance in world.instances.values())
    assert replay(world.log, world.fresh_scheduler()) is None
