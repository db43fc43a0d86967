"""Closed-form plans equal a loop over steps; copies share a link as they should; the host cache forgets the oldest."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegaeon.core.model import ModelSpec
from aegaeon.core.profile import LatencyProfile
from aegaeon.core.request import Request
from aegaeon.core.slo import Slo
from aegaeon.metrics import TokenBatch
from sim.records.token_text import gaps_texts
from sim.world.decode_plan import DecodePlan, plan_decode
from sim.world.event_queue import EventQueue
from sim.world.host_cache import HostCache
from sim.world.host_link import HostLink, OutLink, WeightCopy
from sim.world.model_facts import SimModel
from sim.world.pace import LEAST_STEP_S, Pace
from sim.world.prompt_plan import plan_chunks
from sim.world.request_state import RequestState
from tests.worlds.sim_pool import PROFILE, SHAPES

MODEL = SimModel(ModelSpec("m", 1, SHAPES[0], 4096), PROFILE, "m")
FALLING = LatencyProfile(0.01, 1e-4, 0.0, 0.01, -1e-5, 1e-4)  # a fit that goes wrong for long contexts
ODD_QUANTUM_S = LEAST_STEP_S * math.pi / 3.2  # no step is a multiple of it


def make_member(index: int, context: int, left: int, arrive_s: float) -> RequestState:
    request = Request(str(index), "m", 0.0, context, left)
    member = RequestState(request, MODEL, left)
    member.arrive_s = arrive_s
    return member


def by_the_step(
    profile: LatencyProfile, members: list[RequestState], start_s: float, pace: Pace, quota_s: float | None
) -> tuple[list[float], dict[str, int]]:
    """Ends of steps, and the step from which each member takes part, one step after the other."""
    now_s, until_s = start_s, None
    times: list[float] = []
    joins: dict[str, int] = {}
    while True:
        for member in members:
            if member.arrive_s <= now_s and member.request_id not in joins:
                joins[member.request_id] = len(times)
        if not joins:
            now_s = min(member.arrive_s for member in members)
            continue
        active = [member for member in members if member.request_id in joins]
        context = sum(member.context + len(times) - joins[member.request_id] for member in active)
        step_s = profile.decode_step_s(context, len(active)) / pace.speed
        if pace.quantum_s is not None:
            step_s = math.floor(step_s / pace.quantum_s) * pace.quantum_s
        now_s += max(LEAST_STEP_S / pace.speed, step_s)
        times.append(now_s)
        if until_s is None and quota_s is not None:
            until_s = now_s + quota_s
        done = any(len(times) - joins[member.request_id] == member.target for member in active)
        if done or (until_s is not None and now_s >= until_s):
            return times, joins


@given(
    members=st.lists(
        st.tuples(st.integers(1, 2000), st.integers(1, 60), st.sampled_from([0.0, 0.0, 1.0, 1.013, 1.05, 3.0])),
        min_size=1,
        max_size=6,
    ),
    quota_s=st.sampled_from([None, 0.0, 0.05, 0.4]),
    pace=st.sampled_from([Pace(), Pace(0.5), Pace(1.0, ODD_QUANTUM_S)]),
    profile=st.sampled_from([PROFILE, FALLING]),
)
def test_a_plan_in_closed_form_is_the_loop_over_steps(
    members: list[tuple[int, int, float]], quota_s: float | None, pace: Pace, profile: LatencyProfile
) -> None:
    requests = [make_member(index, *member) for index, member in enumerate(members)]
    plan = plan_decode(profile, requests, 1.0, pace, None, quota_s)
    times, joins = by_the_step(profile, requests, 1.0, pace, quota_s)
    assert plan.times.tolist() == pytest.approx(times)
    assert plan.steps == len(times)
    planned = {member.request_id: join for member, join in zip(plan.members, plan.joins, strict=True)}
    assert {name: join for name, join in planned.items() if join < plan.steps} == {
        name: join for name, join in joins.items() if join < len(times)
    }


def test_a_cut_ends_a_plan_with_the_step_under_way() -> None:
    plan = plan_decode(PROFILE, [make_member(0, 100, 50, 0.0)], 0.0, Pace(), None, None)
    assert plan.cut(float(plan.times[3]) + 1e-6)
    assert plan.steps == 5
    assert plan.boundary_s == plan.times[4]
    assert not plan.cut(float(plan.times[10])), "later than it ends"


def test_a_plan_continues_where_the_one_that_was_cut_ended() -> None:
    whole = plan_decode(PROFILE, [make_member(0, 100, 50, 0.0)], 0.0, Pace(), None, None)
    member = make_member(0, 100, 50, 0.0)
    first = plan_decode(PROFILE, [member], 0.0, Pace(), None, None)
    first.cut(0.1)
    member.take_tokens(first.times[: first.steps])
    rest: DecodePlan = plan_decode(PROFILE, [member], first.boundary_s, Pace(), None, None)
    assert [*first.times[: first.steps], *rest.times] == pytest.approx(whole.times.tolist())


class Link:
    """A host link and its clock."""

    def __init__(self) -> None:
        self.queue = EventQueue()
        self.link = HostLink(self.queue.push)
        self.landed: list[tuple[str, float]] = []

    def copy(
        self, model: str, seconds: float, now_s: float, earliest_s: float = 0.0, urgent: bool = False
    ) -> WeightCopy:
        made = WeightCopy(model, seconds, earliest_s, lambda done, at_s: self.landed.append((done.model, at_s)), urgent)
        self.link.submit(made, now_s)
        return made

    def run(self) -> list[tuple[str, float]]:
        for now_s, action, argument in self.queue.drain():
            action(argument, now_s)
        return self.landed


def test_weights_are_copied_one_after_the_other() -> None:
    link = Link()
    link.copy("a", 2.0, 0.0)
    link.copy("b", 1.0, 0.5)
    assert link.run() == [("a", 2.0), ("b", 3.0)]


def test_kv_goes_first_and_pushes_weights_back() -> None:
    link = Link()
    link.copy("a", 2.0, 0.0)
    assert link.link.move_kv(1.0, 0.0, 0.25) == 1.25
    assert link.link.move_kv(1.0, 0.0, 0.25) == 1.5, "KV in order"
    assert link.run() == [("a", 2.5)]


def test_a_copy_that_somebody_waits_for_overtakes_and_the_other_goes_on_where_it_was() -> None:
    link = Link()
    link.copy("fetched ahead", 2.0, 0.0)
    link.copy("waited for", 1.0, 0.5, urgent=True)
    assert link.run() == [("waited for", 1.5), ("fetched ahead", 3.0)]


def test_a_cancelled_copy_makes_way() -> None:
    link = Link()
    first = link.copy("a", 2.0, 0.0)
    link.copy("b", 1.0, 0.0)
    link.link.cancel(first, 0.5)
    assert link.run() == [("b", 1.5)]


def test_a_copy_waits_for_its_bytes() -> None:
    link = Link()
    link.copy("a", 1.0, 0.0, earliest_s=5.0)
    assert link.run() == [("a", 6.0)]


def test_kv_leaves_in_order() -> None:
    link = OutLink()
    assert (link.move(0.0, 1.0), link.move(0.5, 1.0), link.move(5.0, 1.0)) == (1.0, 2.0, 6.0)


def test_the_host_cache_starts_warm_and_forgets_the_least_recently_used() -> None:
    cache = HostCache({"a": 4, "b": 4, "c": 4}, capacity_bytes=8, disk_bytes_per_s=2.0)
    assert ("a" in cache, "b" in cache, "c" in cache) == (True, True, False)
    assert cache.fetch("a", 1.0) == 0.0
    assert cache.fetch("c", 1.0) == 3.0, "two seconds from disk"
    assert "b" not in cache
    assert cache.fetch("b", 1.5) == 5.0, "after the read that is under way"
    assert cache.reads == 2


def test_a_model_larger_than_host_memory_is_read_every_time() -> None:
    cache = HostCache({"a": 10}, capacity_bytes=8, disk_bytes_per_s=10.0)
    assert cache.fetch("a", 0.0) == 1.0
    assert cache.fetch("a", 5.0) == 6.0


def test_token_times_are_written_in_milliseconds_without_adding_up_errors() -> None:
    times_s = np.array([0.0100049, 0.0200098, 0.0300147, 100.0])
    (text,) = gaps_texts(TokenBatch.of_times([times_s], [4], [0.0], [Slo()]))
    assert text == "[10.00,10.01,10.00,99969.99]"
    assert sum(json.loads(text)) == pytest.approx(100_000.0)


@given(ticks=st.lists(st.lists(st.integers(0, 10**13), min_size=1, max_size=6), min_size=1, max_size=4))
def test_numbers_of_any_size_are_written_as_they_are(ticks: list[list[int]]) -> None:
    """In steps of 0.01 ms, up to three years."""
    pieces = [np.cumsum(gaps) / 100_000 for gaps in ticks]
    requests = len(ticks)
    written = gaps_texts(
        TokenBatch.of_times(pieces, [len(gaps) for gaps in ticks], [0.0] * requests, [Slo()] * requests)
    )
    assert written == [f"[{','.join(f'{gap // 100}.{gap % 100:02d}' for gap in gaps)}]" for gaps in ticks]


@pytest.mark.parametrize(("overlap", "seconds"), [(0.0, 0.0498), (0.5, 0.0448), (1.0, 0.0398)])
def test_a_step_of_both_kinds_saves_its_share_of_the_smaller_fixed_cost(overlap: float, seconds: float) -> None:
    profile = LatencyProfile(0.010, 1e-4, 0.0, 0.029, 1e-6, 1e-4)
    prompt = make_member(0, 100, 8, 0.0)
    members = [make_member(index, 60, 8, 0.0) for index in (1, 2, 3, 4, 5)]
    plan = plan_chunks(profile, prompt, members, 512, 1.0, Pace(), overlap)
    assert plan.boundary_s - 1.0 == pytest.approx(seconds)
    alone = plan_chunks(profile, prompt, [], 512, 1.0, Pace(), overlap)
    assert alone.boundary_s - 1.0 == pytest.approx(0.020)
