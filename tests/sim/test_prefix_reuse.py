"""KV of ended requests in the simulated world: what is found, what it saves, and that the books balance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aegaeon.memory.eviction import EVICTIONS
from aegaeon.workload import NamedBlocks
from sim.study.scenario import Scenario
from tests.worlds.sim_pool import CONSTANTS, PROFILE, SHAPES, SLAB_BYTES, Played, make_hardware, make_scenario, play

Turn = tuple[float, int, Sequence[int], int, int]  # time, model, ids of blocks of 32 tokens, tokens more, new tokens
BLOCK_TOKENS = 32


def scenario_of(turns: Sequence[Turn]) -> Scenario:
    """Ids go on into the output where there are more than the prompt has."""
    arrivals = [(time_s, model, max(1, more), new) for time_s, model, _, more, new in turns]
    made = make_scenario(arrivals)
    contents = {str(index): NamedBlocks.of_ids(BLOCK_TOKENS, turn[2]) for index, turn in enumerate(sorted(turns))}
    return replace(made, contents=contents)


def found_tokens(played: Played) -> int:
    return sum(node.kept.found_tokens for node in played.world.nodes if node.kept is not None)


def test_a_prompt_that_begins_alike_is_computed_from_there() -> None:
    scenario = scenario_of([(0.0, 0, (0, 1, 2), 100, 4), (10.0, 0, (0, 1, 3), 110, 4)])
    played = play(scenario, make_hardware(devices=2), "aegaeon", prefix_cache="lru")
    assert found_tokens(played) == 64
    record = played.records["1"]
    move_s = 64 * SHAPES[0].token_bytes / CONSTANTS.kv_bytes_per_s
    rest_s = PROFILE.prefill_s((110,)) - PROFILE.prefill_s((64,)) + PROFILE.prefill_s((0,))
    assert record.token_times_s[0] == pytest.approx(10.0 + move_s + rest_s)


def test_what_is_off_or_unnamed_is_computed_whole() -> None:
    turns: list[Turn] = [(0.0, 0, (0, 1, 2), 100, 4), (10.0, 0, (0, 1, 2), 100, 4)]
    plain = play(replace(scenario_of(turns), contents={}), make_hardware(devices=1), "slack")
    off = play(scenario_of(turns), make_hardware(devices=1), "slack", prefix_cache="off")
    assert plain.records == off.records
    assert plain.world.nodes[0].kept is None
    assert off.world.nodes[0].kept is None


def test_the_last_token_of_a_prompt_is_always_fed() -> None:
    turns: list[Turn] = [(0.0, 0, (0, 1), 64, 4), (10.0, 0, (0, 1), 64, 4)]
    assert found_tokens(play(scenario_of(turns), make_hardware(devices=1), "slack")) == 32


def test_output_is_found_where_it_has_names() -> None:
    turns: list[Turn] = [(0.0, 0, (0, 1, 2, 3), 64, 65), (10.0, 0, (0, 1, 2, 3, 4), 161, 4)]
    assert found_tokens(play(scenario_of(turns), make_hardware(devices=1), "slack")) == 128


def test_models_and_scopes_share_nothing() -> None:
    turns: list[Turn] = [(0.0, 0, (0, 1, 2), 100, 4), (10.0, 2, (0, 1, 2), 100, 4), (20.0, 0, (0, 1, 2), 100, 4)]
    scenario = scenario_of(turns)
    contents = {**scenario.contents, "2": replace(scenario.contents["2"], scope="another")}
    assert found_tokens(play(replace(scenario, contents=contents), make_hardware(devices=1), "slack")) == 0


def test_what_host_memory_has_given_up_is_read_from_disk_where_that_is_sooner_done() -> None:
    turns: list[Turn] = [(0.0, 0, (0, 1, 2), 100, 4), (10.0, 1, (), 900, 4), (20.0, 0, (0, 1, 3), 110, 4)]
    first_s = {}
    for kv_disk_bytes, disk_bytes_per_s in ((0, 1e6), (10_000, 1e6), (10_000, 500.0)):
        hardware = make_hardware(
            devices=1,
            kv_cache_bytes=8 * SLAB_BYTES,
            kv_disk_bytes=kv_disk_bytes,
            disk_bytes_per_s=disk_bytes_per_s,
        )
        played = play(scenario_of(turns), hardware, "slack", prefix_cache="lru")
        reads = kv_disk_bytes > 0 and disk_bytes_per_s > 500.0
        (kept,) = (node.kept for node in played.world.nodes)
        assert kept is not None
        assert (kept.found_tokens, kept.disk_tokens) == ((64, 64) if reads else (0, 0))
        first_s[kv_disk_bytes, disk_bytes_per_s] = played.records["2"].token_times_s[0]
    read_s = 64 * SHAPES[0].token_bytes / 1e6
    move_s = 64 * SHAPES[0].token_bytes / CONSTANTS.kv_bytes_per_s
    saved_s = PROFILE.prefill_s((64,)) - PROFILE.prefill_s((0,))
    computed_s = first_s[0, 1e6]
    assert first_s[10_000, 1e6] == pytest.approx(computed_s - saved_s + read_s + move_s)
    assert first_s[10_000, 500.0] == computed_s


IDS = st.lists(st.integers(0, 2), max_size=5)
TURNS = st.lists(
    st.tuples(
        st.floats(0.0, 20.0, allow_nan=False).map(lambda value: round(value, 3)),
        st.integers(0, 3),
        IDS,
        st.integers(1, 120),
        st.integers(1, 80),
    ),
    min_size=1,
    max_size=30,
)


def chained(ids: Sequence[int]) -> tuple[int, ...]:
    """A number for each block and all before it."""
    names, name = [], 0
    for one in ids:
        name = 4 * name + one + 1
        names.append(name)
    return tuple(names)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    turns=TURNS,
    system=st.sampled_from(["slack", "aegaeon", "sllm"]),
    policy=st.sampled_from(sorted(EVICTIONS)),
    slabs=st.sampled_from([4, 12, 1000]),
    chunk=st.sampled_from([None, 32]),
    disk=st.sampled_from([0, 3000, 10**6]),
)
def test_nothing_is_found_that_an_unlimited_dictionary_would_not(
    turns: list[Turn], system: str, policy: str, slabs: int, chunk: int | None, disk: int
) -> None:
    named = [(time_s, model, chained(ids), 20 * len(ids) + more, new) for time_s, model, ids, more, new in turns]
    hardware = make_hardware(
        devices=2,
        kv_cache_bytes=slabs * SLAB_BYTES,
        prefill_chunk_tokens=chunk,
        kv_disk_bytes=disk,
        disk_bytes_per_s=1e6,
    )
    played = play(scenario_of(named), hardware, system, prefix_cache=policy)
    seen: set[tuple[int, int]] = set()
    most = 0
    for _, model, ids, prompt, new in sorted(named):
        run = 0
        while run < min(len(ids), (prompt - 1) // BLOCK_TOKENS) and (model, ids[run]) in seen:
            run += 1
        most += run * BLOCK_TOKENS
        seen.update((model, one) for one in ids[: (prompt + new - 1) // BLOCK_TOKENS])
    assert found_tokens(played) <= most
