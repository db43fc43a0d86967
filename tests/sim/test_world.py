"""The simulated world through its public interface: exact times of small cases, and what holds after any run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aegaeon.core.instance import InstanceSpec, Role
from aegaeon.core.model import ModelSpec
from aegaeon.scheduler.layout import Layout, PlacedInstance, PoolSpec, Rooms, decided_layout
from sim.systems.systems import find_system
from tests.worlds.sim_pool import CONSTANTS, PROFILE, SHAPES, Arrivals, make_hardware, make_scenario, play

SWITCH_S = 0.5  # of 1,000 bytes


def mixed_layout(pool: PoolSpec, models: Sequence[ModelSpec], *_: object) -> Layout:
    """Every device prefills and decodes; a quarter of its memory is for KV."""
    devices = tuple(
        replace(device, rooms=Rooms(device.memory_bytes * 3 // 4, device.memory_bytes // 4, max(1, len(models))))
        for device in pool.devices
    )
    return decided_layout(replace(pool, devices=devices, roles=(Role.MIXED,) * len(devices)), models)


MIXED = replace(find_system("aegaeon"), layout=mixed_layout)

ARRIVALS = st.lists(
    st.tuples(
        st.floats(0.0, 20.0, allow_nan=False).map(lambda value: round(value, 3)),
        st.integers(0, 3),
        st.integers(1, 120),
        st.integers(1, 80),
    ),
    min_size=1,
    max_size=40,
)


def test_a_request_alone_takes_what_the_profile_says() -> None:
    played = play(make_scenario([(1.0, 0, 100, 4)]), make_hardware(devices=2))
    record = played.records["0"]
    first_s = 1.0 + SWITCH_S + PROFILE.prefill_s((100,))
    kv_bytes = 100 * SHAPES[0].token_bytes
    out_s = kv_bytes / CONSTANTS.kv_bytes_per_s
    decode_s = first_s + out_s + out_s + SWITCH_S  # the KV goes first on the link to the decode instance, then weights
    expected = [first_s]
    for step in range(3):
        decode_s += PROFILE.decode_step_s(101 + step, 1)
        expected.append(decode_s)
    assert record.token_times_s == pytest.approx(expected)
    assert record.parts is not None
    assert record.parts.prefill_s == pytest.approx(PROFILE.prefill_s((100,)))
    assert record.parts.decode_s == pytest.approx(sum(PROFILE.decode_step_s(101 + step, 1) for step in range(3)))
    assert record.parts.block_s == pytest.approx(out_s)
    assert played.tally.switches == 2


def test_a_request_of_one_token_is_over_after_its_prefill() -> None:
    played = play(make_scenario([(0.0, 0, 50, 1)]), make_hardware(devices=2))
    assert played.records["0"].token_times_s == pytest.approx([SWITCH_S + PROFILE.prefill_s((50,))])


def test_members_of_a_batch_step_together() -> None:
    played = play(make_scenario([(0.0, 0, 50, 30), (0.0, 0, 60, 30)]), make_hardware(devices=2))
    first, second = (played.records[name].token_times_s for name in "01")
    assert set(first[1:]) & set(second[1:]), "both in one step"
    steps = [later - earlier for earlier, later in zip(first[-5:], first[-4:], strict=False)]
    assert all(step >= PROFILE.decode_step_s(50 + 60, 1) for step in steps)


def test_the_next_model_is_brought_in_while_a_batch_runs() -> None:
    long = [(0.0, model, 20, 400) for model in range(2)]
    played = play(make_scenario(long, models=2), make_hardware(devices=2))
    switches = played.tally.switch_s["m0"] + played.tally.switch_s["m1"]
    assert sum(seconds == 0.0 for seconds in switches) > len(switches) / 2, "prefetched"


def test_weights_that_are_not_in_host_memory_come_from_disk() -> None:
    arrivals = [(0.0, 0, 20, 2), (30.0, 1, 20, 2), (60.0, 0, 20, 2)]
    warm = play(make_scenario(arrivals), make_hardware(devices=1))
    cold = play(make_scenario(arrivals), make_hardware(devices=1, host_memory_bytes=1000, weight_bytes_per_s=2000.0))
    assert sum(node.host.reads for node in warm.world.nodes) == 0
    assert sum(node.host.reads for node in cold.world.nodes) >= 1
    disk_s = 1000 / CONSTANTS.disk_bytes_per_s
    first = cold.records["1"]
    assert first.ttft_s == pytest.approx(disk_s + PROFILE.prefill_s((20,))), "the copy goes on while the disk is read"


def test_requests_are_spread_over_nodes_and_each_has_its_own_scheduler() -> None:
    arrivals = [(0.1 * index, index % 4, 50, 40) for index in range(40)]
    played = play(make_scenario(arrivals), make_hardware(devices=4, nodes=2))
    assert len(played.world.nodes) == 2
    assert all(node.events > 20 for node in played.world.nodes)


def test_requests_of_a_model_stay_together_while_some_are_under_way() -> None:
    """Else each decodes alone on a node of its own: a pool of many nodes does several times the work."""
    arrivals = [(0.05 * index, index // 2 % 2, 50, 100) for index in range(12)]
    played = play(make_scenario(arrivals), make_hardware(devices=4, nodes=2))
    used = [
        {model for model in ("m0", "m1") if any(model in instance.weights for instance in node.instances.values())}
        for node in played.world.nodes
    ]
    assert used in ([{"m0"}, {"m1"}], [{"m1"}, {"m0"}])


def test_instances_of_one_device_share_its_compute() -> None:
    def side_by_side(overlap: float) -> float:
        specs = [InstanceSpec(f"i{index}", Role.MIXED, 100_000, 1000, max_resident_models=1) for index in range(2)]
        placed = tuple(PlacedInstance(spec, 0, 0.5) for spec in specs)
        system = replace(MIXED, layout=lambda pool, *rest: Layout(pool.devices, placed, overlap))
        played = play(make_scenario([(0.0, 0, 20, 200), (0.0, 1, 20, 200)]), make_hardware(devices=1), system)
        return max(record.token_times_s[-1] for record in played.tally.records)

    assert side_by_side(0.0) > 1.45 * side_by_side(1.0)
    assert side_by_side(0.0) > side_by_side(0.5) > side_by_side(1.0)


def test_prompts_in_chunks_let_the_others_go_on() -> None:
    arrivals = [(0.0, 0, 20, 200), (1.0, 0, 2000, 4)]
    whole = play(make_scenario(arrivals), make_hardware(devices=1), MIXED)
    chunked = play(make_scenario(arrivals), make_hardware(devices=1, prefill_chunk_tokens=128), MIXED)
    assert max(chunked.records["0"].per_token_s[1:]) < 0.5 * max(whole.records["0"].per_token_s[1:])


def test_a_full_slab_cache_makes_requests_wait_or_be_recomputed() -> None:
    arrivals = [(0.01 * index, index % 2, 100, 100) for index in range(12)]
    slabs = 4 * CONSTANTS.slab_bytes
    played = play(make_scenario(arrivals), make_hardware(devices=2, kv_cache_bytes=slabs))
    assert not played.tally.dropped
    roomy = play(make_scenario(arrivals), make_hardware(devices=2))
    assert played.tally.last_s > roomy.tally.last_s


def test_equal_runs_are_equal() -> None:
    arrivals = [(0.05 * index, index % 4, 30 + index, 20 + index % 7) for index in range(60)]
    runs = [play(make_scenario(arrivals), make_hardware()) for _ in range(2)]
    assert runs[0].tally.records == runs[1].tally.records
    assert runs[0].tally.texts == runs[1].tally.texts
    assert runs[0].tally.summary() == runs[1].tally.summary()


@pytest.mark.parametrize("system", [find_system("aegaeon"), MIXED], ids=["disaggregated", "mixed"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    arrivals=ARRIVALS,
    devices=st.sampled_from([1, 2, 5]),
    slabs=st.sampled_from([8, 20, 1000]),
    device_bytes=st.sampled_from([20_000, 400_000]),
    kv_bytes_per_s=st.sampled_from([1e4, 1e6]),
    chunk=st.sampled_from([None, 32]),
    streams=st.booleans(),
)
def test_after_any_run_all_is_accounted_for(
    system: object,
    arrivals: Arrivals,
    devices: int,
    slabs: int,
    device_bytes: int,
    kv_bytes_per_s: float,
    chunk: int | None,
    streams: bool,
) -> None:
    hardware = make_hardware(
        devices,
        memory_bytes=device_bytes,
        kv_cache_bytes=slabs * CONSTANTS.slab_bytes,
        kv_bytes_per_s=kv_bytes_per_s,
        prefill_chunk_tokens=chunk,  # type: ignore[arg-type]
        kv_streams_out=streams,
    )
    play(make_scenario(arrivals), hardware, system)  # type: ignore[arg-type]
