"""Baselines in the simulated world: every request ends once, books balance, and each system is what it says."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.worlds.sim_pool import make_hardware, make_scenario, play

BASELINES = ["sllm", "sllm+", "muxserve", "dedicated"]
ARRIVALS = st.lists(
    st.tuples(st.floats(0, 30), st.integers(0, 3), st.integers(1, 400), st.integers(1, 300)), min_size=1, max_size=60
)
# Long enough that queues form: a request takes seconds, and so does a switch.
BUSY = [(index * 0.1, index % 4, 200, 200) for index in range(80)]


@pytest.mark.parametrize("system", BASELINES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(arrivals=ARRIVALS, devices=st.integers(2, 5))
def test_any_workload_is_served_to_its_end(
    system: str, arrivals: list[tuple[float, int, int, int]], devices: int
) -> None:
    play(make_scenario(arrivals), make_hardware(devices), system)


@pytest.mark.parametrize("system", BASELINES)
def test_a_small_slab_cache_makes_requests_wait_and_loses_none(system: str) -> None:
    played = play(make_scenario(BUSY), make_hardware(4, kv_cache_bytes=200 * 4096), system)
    assert len(played.records) == len(BUSY)


@pytest.mark.parametrize("system", BASELINES)
def test_the_same_workload_gives_the_same_times(system: str) -> None:
    first, second = (play(make_scenario(BUSY), make_hardware(3), system).records for _ in range(2))
    assert first == second


@pytest.mark.parametrize("system", BASELINES)
def test_on_several_nodes_a_request_gets_to_one_that_has_its_model(system: str) -> None:
    played = play(make_scenario(BUSY), make_hardware(4, nodes=2), system)
    assert sum(record.error is None for record in played.records.values()) == len(BUSY)


@pytest.mark.parametrize("system", ["muxserve", "dedicated"])
def test_static_systems_never_switch_and_drop_nothing(system: str) -> None:
    played = play(make_scenario(BUSY), make_hardware(4), system)
    assert played.tally.switches == 0
    assert all(record.error is None for record in played.records.values())


def test_dedicated_gpus_are_as_fast_as_it_gets() -> None:
    def mean_s(system: str) -> float:
        records = play(make_scenario(BUSY), make_hardware(2), system).records.values()
        return sum(record.per_token_s[0] for record in records if record.per_token_s) / len(records)

    assert mean_s("dedicated") < mean_s("muxserve")
    assert mean_s("dedicated") < mean_s("sllm")


def test_overload_drops_requests_of_serverless_systems_alone() -> None:
    arrivals = [(index * 0.2, index % 4, 300, 400) for index in range(150)]
    dropped = {
        system: sum(
            record.error is not None
            for record in play(make_scenario(arrivals), make_hardware(1), system).records.values()
        )
        for system in ("sllm", "sllm+", "dedicated")
    }
    assert dropped["sllm"] > 0
    assert dropped["sllm+"] > 0
    assert dropped["dedicated"] == 0
