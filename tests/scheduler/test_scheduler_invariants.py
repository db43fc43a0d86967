"""Whatever happens, in whatever order: the toy world's checks hold, all work is done, and a replay says the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aegaeon.scheduler.log import decode, encode
from tests.worlds.toy_play import HISTORIES, LAYOUTS, Action, Play
from tests.worlds.toy_world import SMALL, WIDE, ToyWorld, make_limits, make_models

POOLS = st.tuples(st.sampled_from([4, 6, 100]), st.sampled_from([24, 1000]), st.sampled_from([1, 2, 4]))
"""Slabs, KV blocks of an instance, models that it may hold."""


def play_out(policy: str, layout: str, actions: list[Action], pool: tuple[int, int, int], hosted: int | None) -> Play:
    """Play it to its end; host memory holds ``hosted`` of five models (None: as many as there are)."""
    slabs, kv_blocks, max_resident_models = pool
    models = make_models(5, shapes=(SMALL, WIDE))
    host_bytes = None if hosted is None else hosted * models[0].weight_bytes
    world = ToyWorld(models, replace(make_limits(slabs=slabs), host_weight_bytes=host_bytes), policy=policy)
    play = Play(world, LAYOUTS[layout], kv_blocks, max_resident_models)
    for action in actions:
        play.act(action)
    play.finish()
    play.check_end()
    return play


@pytest.mark.parametrize("layout", list(LAYOUTS))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(actions=HISTORIES, pool=POOLS)
def test_any_history_ends_well(layout: str, actions: list[Action], pool: tuple[int, int, int]) -> None:
    log = play_out("aegaeon", layout, actions, pool, hosted=None).world.log
    assert [decode(encode(entry)) for entry in log] == log


@pytest.mark.parametrize("layout", list(LAYOUTS))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(actions=HISTORIES, pool=POOLS, hosted=st.sampled_from([None, 1, 3]))
def test_any_history_under_slack_ends_well(
    layout: str, actions: list[Action], pool: tuple[int, int, int], hosted: int | None
) -> None:
    play_out("slack", layout, actions, pool, hosted)
