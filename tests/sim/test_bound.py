"""The bound: its lazy schedule on cases worked out by hand, and that no simulated run does better."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegaeon.core.request import Request
from aegaeon.core.slo import Slo
from sim.study.bound import lazy_steps_s, least_demand
from tests.worlds.sim_pool import PROFILE, Arrivals, make_hardware, make_scenario, play

SLO = Slo(ttft_s=1.0, tpot_s=0.5)


def arrivals(*requests: tuple[float, int]) -> list[tuple[Request, int]]:
    """(arrival, tokens) of requests for one model."""
    return [(Request(str(i), "m0", time_s, 10, new, SLO), new) for i, (time_s, new) in enumerate(requests)]


def test_a_request_alone_steps_when_its_tokens_are_due() -> None:
    assert lazy_steps_s(arrivals((2.0, 4))) == pytest.approx([3.5, 4.0, 4.5])


def test_a_request_of_one_token_takes_no_step() -> None:
    assert lazy_steps_s(arrivals((0.0, 1))) == []


def test_a_request_that_has_arrived_rides_along_and_needs_no_steps_of_its_own() -> None:
    # Steps at 1.5, 2.0 and 2.5 for the first one; the second, which arrives at 1.6, takes part in two of them.
    steps = lazy_steps_s(arrivals((0.0, 4), (1.6, 3)))
    assert steps == pytest.approx([1.5, 2.0, 2.5])


def test_who_comes_too_late_to_ride_along_steps_at_its_own_due_times() -> None:
    steps = lazy_steps_s(arrivals((0.0, 3), (1.6, 3)))  # it takes part in the step at 2.0, its second token is due 3.6
    assert steps == pytest.approx([1.5, 2.0, 3.6])


def test_demand_is_steps_tokens_and_prefills_by_their_due_times() -> None:
    scenario = make_scenario([(0.0, 0, 100, 3)], models=1)
    demand = least_demand(scenario)
    prefill_s = PROFILE.p1_s * 100 + PROFILE.p2_s * 100**2
    token_s = [PROFILE.d1_s * (100 + index) + PROFILE.d2_s for index in (1, 2)]
    expected = [prefill_s, PROFILE.d0_s + token_s[0], PROFILE.d0_s + token_s[1]]
    assert demand.due_s == pytest.approx([10.0, 10.1, 10.2])
    assert demand.work_s == pytest.approx([sum(expected[: n + 1]) for n in range(3)])
    assert demand.least_load(2.0) == pytest.approx(max(demand.work_s / demand.due_s) / 2)
    whole = least_demand(scenario, shared_prefill=False)
    assert whole.work_s[0] == pytest.approx(PROFILE.prefill_s((100,)))


def test_no_requests_are_no_demand() -> None:
    assert least_demand(make_scenario([])).least_devices() == 0.0


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.floats(0.0, 20.0).map(lambda t: round(t, 3)), st.integers(0, 3), st.integers(1, 60), st.integers(1, 80)
        ),
        min_size=1,
        max_size=20,
    )
)
def test_a_run_in_which_nobody_is_late_was_not_shorter_than_the_bound(requests: Arrivals) -> None:
    scenario = make_scenario(requests)
    played = play(scenario, make_hardware(devices=2), "slack")
    if all(record.slo_attainment == 1.0 for record in played.records.values()):
        assert least_demand(scenario).least_load(2) <= 1.0
