"""Grouped first-come-first-served prefill, on instances that do nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aegaeon.core.command import Command, EvictWeights, ExtendTurn, LoadWeights, RejectRequest, StartTurn
from aegaeon.core.instance import Role
from aegaeon.core.model import ModelSpec
from aegaeon.core.slo import Slo
from tests.worlds import toy_moves
from tests.worlds.toy_world import SMALL, WIDE, ToyWorld, make_instance, make_limits, make_models


def world(instances: int = 1, **limits: float) -> ToyWorld:
    toy = ToyWorld(make_models(6), make_limits(**limits))
    for index in range(instances):
        toy.join(make_instance(f"p{index}", Role.PREFILL))
    toy.deliver_all()
    return toy


def arrive(toy: ToyWorld, *requests: str, prompt: int = 16) -> list[Command]:
    """Requests called ``<model>.<anything>``."""
    for name in requests:
        toy.arrive(name, name.split(".")[0], prompt)
    return toy.deliver_all()


def runs(commands: list[Command]) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(c.instance_id, c.model, c.prefill) for c in commands if isinstance(c, StartTurn)]


def end_turn(toy: ToyWorld, instance_id: str = "p0") -> list[Command]:
    return toy_moves.end_turn(toy, instance_id)


def test_a_group_is_a_turn_that_later_requests_of_its_model_join() -> None:
    toy = world()
    (start,) = arrive(toy, "m0.a")
    assert start == StartTurn("p0", 1, "m0", prefill=("m0.a",))
    assert arrive(toy, "m0.b", "m0.c") == [
        ExtendTurn("p0", 1, prefill=("m0.b",)),
        ExtendTurn("p0", 1, prefill=("m0.c",)),
    ]


def test_who_must_be_answered_sooner_is_prefilled_before_those_who_came_first() -> None:
    toy = ToyWorld([*make_models(3), ModelSpec("m3", 100, SMALL, 4096, Slo(ttft_s=2.0))], make_limits())
    toy.join(make_instance("p0", Role.PREFILL))
    arrive(toy, "m0.a", "m1.a", "m2.a", "m3.a")
    assert [run for _ in range(3) for run in runs(end_turn(toy))] == [
        ("p0", "m3", ("m3.a",)),
        ("p0", "m1", ("m1.a",)),
        ("p0", "m2", ("m2.a",)),
    ]


def test_a_group_goes_forward_with_the_first_of_its_members_to_be_due() -> None:
    toy = world()
    arrive(toy, "m0.a", "m1.a", "m2.a")
    toy.models["m2"] = replace(toy.models["m2"], slo=Slo(ttft_s=2.0))  # as a request of its own target
    arrive(toy, "m2.b")
    assert [run for _ in range(2) for run in runs(end_turn(toy))] == [
        ("p0", "m2", ("m2.a", "m2.b")),
        ("p0", "m1", ("m1.a",)),
    ]


def test_at_most_eight_requests_ever_join_a_group() -> None:
    toy = world()
    arrive(toy, *(f"m0.{i}" for i in range(5)))
    toy.step("p0")
    toy.step("p0")  # two are prefilled; their places are not given away again
    toy.deliver_all()
    joined = arrive(toy, *(f"m0.{i}" for i in range(5, 12)))
    assert [c.prefill for c in joined if isinstance(c, ExtendTurn)] == [("m0.5",), ("m0.6",), ("m0.7",)]
    assert runs(end_turn(toy)) == [("p0", "m0", ("m0.8", "m0.9", "m0.10", "m0.11"))]


def test_groups_run_in_order_and_a_request_overtakes_only_by_joining_one() -> None:
    toy = world()
    arrive(toy, "m0.a", "m1.a", "m2.a", "m1.b", "m0.b")
    assert runs(end_turn(toy)) == [("p0", "m1", ("m1.a", "m1.b"))]
    assert runs(end_turn(toy)) == [("p0", "m2", ("m2.a",))]


def test_a_request_joins_the_first_group_of_its_model_on_any_instance() -> None:
    toy = world(instances=2)
    arrive(toy, "m0.a", "m1.a", prompt=100)
    arrive(toy, "m2.a", prompt=10)  # p1 has as much to do as p0: the first to join takes it
    said = arrive(toy, "m1.b", prompt=1000)  # p0 is the shorter queue now, but the group is on p1
    assert said == [ExtendTurn("p1", 2, prefill=("m1.b",))]


def test_a_new_group_goes_where_the_queue_drains_first() -> None:
    # A switch takes 0.5 s, a prefill 10 ms and 1 ms per token.
    toy = world(instances=2)
    arrive(toy, "m0.a", prompt=600)  # p0: 0.5 + 0.61 = 1.11 s
    arrive(toy, "m1.a", prompt=10)  # p1: 0.5 + 0.02 = 0.52 s
    arrive(toy, "m2.a", prompt=10)  # p1: 1.04 s, still less
    arrive(toy, "m3.a", prompt=10)  # p1: 1.56 s
    arrive(toy, "m4.a", prompt=10)  # p0
    assert runs(end_turn(toy, "p0")) == [("p0", "m4", ("m4.a",))]
    assert runs(end_turn(toy, "p1")) == [("p1", "m2", ("m2.a",))]
    assert runs(end_turn(toy, "p1")) == [("p1", "m3", ("m3.a",))]


def test_a_group_that_follows_one_of_its_model_needs_no_switch() -> None:
    toy = world(instances=2)
    arrive(toy, *(f"m0.{i}" for i in range(8)), prompt=10)  # p0: 0.5 + 8 * 0.02 = 0.66 s, and the group is full
    arrive(toy, "m1.a", prompt=140)  # p1: 0.5 + 0.15 = 0.65 s
    arrive(toy, "m0.8", prompt=300)  # p1 (0.65 s) although p0 has the model: 0.65 + 0.5 + 0.31 = 1.46 s
    arrive(toy, "m1.b", "m1.c", prompt=10)  # join the group on p1
    arrive(toy, *(f"m0.x{i}" for i in range(7)), prompt=1)  # fill m0's second group
    arrive(toy, "m0.last", prompt=10)  # p0 (0.66 s): no switch, 0.68 s
    arrive(toy, "m2.a", prompt=10)  # p0: 0.68 s is less than p1's
    assert runs(end_turn(toy, "p0")) == [("p0", "m0", ("m0.last",))]
    assert runs(end_turn(toy, "p0")) == [("p0", "m2", ("m2.a",))]


def test_the_next_different_model_is_prefetched_once_in_a_turn() -> None:
    toy = world()
    assert [c for c in arrive(toy, "m0.a", "m1.a", "m2.a") if isinstance(c, LoadWeights)] == [LoadWeights("p0", "m1")]
    # m1 is there already; m0, used longest ago, goes for m2.
    assert end_turn(toy) == [
        StartTurn("p0", 2, "m1", prefill=("m1.a",)),
        EvictWeights("p0", "m0"),
        LoadWeights("p0", "m2"),
    ]
    assert end_turn(toy) == [StartTurn("p0", 3, "m2", prefill=("m2.a",))]


def test_nothing_is_prefetched_without_room_beside_the_running_model() -> None:
    toy = ToyWorld(make_models(3), make_limits())
    toy.join(make_instance("p0", Role.PREFILL, max_resident_models=1))
    said = arrive(toy, "m0.a", "m1.a")
    assert not [c for c in said if isinstance(c, LoadWeights | EvictWeights)]
    assert end_turn(toy) == [EvictWeights("p0", "m0"), StartTurn("p0", 2, "m1", prefill=("m1.a",))]


def test_requests_wait_for_an_instance_and_are_grouped_when_it_comes() -> None:
    toy = world(instances=0)
    assert arrive(toy, "m0.a", "m1.a", "m0.b") == []
    toy.join(make_instance("late", Role.PREFILL))
    assert runs(toy.deliver_all()) == [("late", "m0", ("m0.a", "m0.b"))]


def test_an_instance_that_joins_takes_the_next_group_at_once() -> None:
    toy = world()
    arrive(toy, "m0.a", "m1.a")
    toy.join(make_instance("late", Role.PREFILL))
    toy.deliver_all()
    assert runs(arrive(toy, "m2.a")) == [("late", "m2", ("m2.a",))]


def test_a_group_behind_one_of_its_model_counts_no_switch() -> None:
    # m0, m1 and eight of m2 take a switch of 0.5 s each, the ninth of m2 none; 11 prefills take 26 ms each.
    toy = world(max_queued_requests=11)
    arrive(toy, "m0.a", "m1.a", *(f"m2.{i}" for i in range(9)))
    (refusal,) = arrive(toy, "m3.a")
    assert isinstance(refusal, RejectRequest)
    assert refusal.retry_after_s == pytest.approx(3 * 0.5 + 11 * 0.026)


def test_a_prompt_that_does_not_fit_the_slab_cache_waits_until_others_leave() -> None:
    # 10 slabs of 10 blocks of 16 tokens, of which 1 % is kept free: 99 blocks.
    toy = world(instances=2, slabs=10)
    toy.join(make_instance("d0", Role.DECODE))
    toy.deliver_all()
    assert runs(arrive(toy, "m0.big", prompt=780)) == [("p0", "m0", ("m0.big",))]  # 50 blocks
    said = end_turn(toy)  # decodes now
    assert StartTurn("d0", 2, "m0", decode=("m0.big",)) in said
    assert arrive(toy, "m1.big", prompt=780) == []  # 50 more would leave nothing
    assert arrive(toy, "m2.small", prompt=16) == []  # and nobody overtakes it, on no instance
    assert runs(end_turn(toy, "d0")) == [("p0", "m1", ("m1.big",)), ("p1", "m2", ("m2.small",))]


def test_slabs_of_one_shape_do_not_hold_blocks_of_another() -> None:
    # Two slabs of ten small or five wide blocks; one wide block is as large as two small ones.
    toy = ToyWorld(make_models(2, shapes=(SMALL, WIDE)), make_limits(slabs=2))
    for spec in (make_instance("p0", Role.PREFILL), make_instance("d0", Role.DECODE)):
        toy.join(spec)
    toy.deliver_all()
    arrive(toy, "m0.a", prompt=16)  # two small blocks: one slab
    end_turn(toy)
    assert runs(arrive(toy, "m1.a", prompt=80)) == []  # six wide blocks: two slabs, though the bytes would fit
    assert runs(end_turn(toy, "d0")) == [("p0", "m1", ("m1.a",))]


def test_nobody_waits_for_a_prompt_that_was_cancelled() -> None:
    toy = world(instances=2, slabs=10)
    toy.join(make_instance("d0", Role.DECODE))
    toy.deliver_all()
    arrive(toy, "m0.big", prompt=780)
    end_turn(toy)
    assert arrive(toy, "m1.big", prompt=780) == []
    assert arrive(toy, "m2.small") == []
    toy.cancel("m1.big")
    assert runs(toy.deliver_all()) == [("p1", "m2", ("m2.small",))]


def test_nobody_waits_for_a_prompt_whose_instance_is_gone() -> None:
    toy = world(slabs=10)
    toy.join(make_instance("small", Role.PREFILL, kv_blocks=40))
    toy.join(make_instance("d0", Role.DECODE))
    toy.deliver_all()
    arrive(toy, "m0.big", prompt=780)
    end_turn(toy)
    assert arrive(toy, "m1.big", prompt=780) == []
    assert arrive(toy, "m2.small") == []
    toy.lose("p0")
    assert runs(toy.deliver_all()) == [("small", "m2", ("m2.small",))]
