"""Whatever happens, in whatever order: the toy world's checks hold, all work is done, and a replay says the same."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aegaeon.scheduler.log import decode, encode, replay
from tests.worlds.toy_play import LAYOUTS, Action, Play

# Steps and deliveries happen far more often than faults; some histories are long and calm, so that memory fills up.
CALM = ["arrive"] * 6 + ["step"] * 20 + ["deliver"] * 12 + ["cancel"]
FAULTY = [*CALM, "cancel", "fail_request", "fail_turn", "lose", "restart", "restart", "break_model"]
ACTIONS = st.sampled_from([CALM, FAULTY]).flatmap(
    lambda kinds: st.lists(st.tuples(st.sampled_from(kinds), st.integers(0, 9999)), min_size=80, max_size=250)
)


@pytest.mark.parametrize("layout", list(LAYOUTS))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(
    actions=ACTIONS,
    slabs=st.sampled_from([4, 6, 100]),
    kv_blocks=st.sampled_from([24, 1000]),
    max_resident_models=st.sampled_from([1, 2, 4]),
)
def test_any_history_ends_well(
    layout: str, actions: list[Action], slabs: int, kv_blocks: int, max_resident_models: int
) -> None:
    play = Play(LAYOUTS[layout], slabs, kv_blocks, max_resident_models)
    for action in actions:
        play.act(action)
    play.finish()
    world = play.world
    assert world.unfinished() == []
    assert all(toy.ends == 1 for toy in world.requests.values())
    assert all(toy.blocks == 0 for toy in world.requests.values())
    assert all(instance.on_device == set() for instance in world.instances.values())
    assert replay(world.log, world.fresh_scheduler()) is None
    assert [decode(encode(entry)) for entry in world.log] == world.log
