"""Baselines keep the contract of a scheduler, whatever happens, and do what sets each of them apart."""

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aegaeon.core.command import Command, EndTurn, EvictWeights, ExtendTurn, RejectReason, RejectRequest, StartTurn
from aegaeon.core.event import InstanceJoined, RequestArrived
from aegaeon.core.instance import InstanceSpec, Role
from aegaeon.core.request import Request
from aegaeon.core.slo import Slo
from tests.worlds import toy_moves
from tests.worlds.policy_world import BASELINES, PolicyWorld, play_of, pool
from tests.worlds.toy_moves import step
from tests.worlds.toy_play import HISTORIES, Action

arrive = partial(toy_moves.arrive, max_new=16)


@pytest.mark.parametrize("baseline", BASELINES)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(actions=HISTORIES, slabs=st.sampled_from([4, 6, 100]), kv_blocks=st.sampled_from([48, 1000]))
def test_any_history_ends_well(baseline: str, actions: list[Action], slabs: int, kv_blocks: int) -> None:
    play = play_of(baseline, 5 if baseline == "static" else 3, slabs, kv_blocks)
    for action in actions:
        play.act(action)
    play.finish()
    if baseline == "static":  # models whose only GPU died wait for it
        for _ in range(5):
            play.join(Role.MIXED)
        play.world.run()
    play.check_end()


def starts(commands: list[Command]) -> list[tuple[str, str]]:
    return [(each.instance_id, each.model) for each in commands if isinstance(each, StartTurn)]


@pytest.mark.parametrize("baseline", BASELINES)
def test_all_requests_of_a_model_run_together_and_prompts_go_first(baseline: str) -> None:
    world = pool(baseline, 1)
    (start,) = arrive(world, "m0.a")
    assert start == StartTurn("g0", 1, "m0", ("m0.a",), keep_prefilled=True)
    assert arrive(world, "m0.b", "m0.c") == [ExtendTurn("g0", 1, (name,)) for name in ("m0.b", "m0.c")]
    world.run()
    assert world.unfinished() == []


@pytest.mark.parametrize("baseline", BASELINES)
def test_instances_that_cannot_do_both_are_refused(baseline: str) -> None:
    world = pool(baseline, 1)
    with pytest.raises(ValueError, match="baselines prefill and decode on the same instance"):
        world.scheduler.handle(InstanceJoined(InstanceSpec("p", Role.PREFILL, 1, 1)), 0.0)
    with pytest.raises(ValueError, match="joined twice"):
        world.scheduler.handle(InstanceJoined(world.instances["g0"].spec), 0.0)


@pytest.mark.parametrize("baseline", BASELINES)
def test_what_can_never_run_is_refused_with_its_reason(baseline: str) -> None:
    world = pool(baseline, 1)
    unknown = Request("x", "nobody", 0.0, 1, 1)
    (refused,) = world.scheduler.handle(RequestArrived(unknown), 0.0)
    assert isinstance(refused, RejectRequest)
    assert refused.reason is RejectReason.UNKNOWN_MODEL
    world = pool(baseline, 1, slabs=1)
    (too_large,) = arrive(world, "m0.a", prompt=4000)
    assert isinstance(too_large, RejectRequest)
    assert too_large.reason is RejectReason.TOO_LARGE


@pytest.mark.parametrize("baseline", BASELINES)
def test_a_full_queue_refuses(baseline: str) -> None:
    world = pool(baseline, 1, max_queued_requests=2)
    world.join(world.instances["g0"].spec.__class__("tiny", Role.MIXED, 10**6, 50, max_resident_models=1))
    said = arrive(world, *[f"m0.{index}" for index in range(300)])
    refused = [each for each in said if isinstance(each, RejectRequest)]
    assert refused
    assert {each.reason for each in refused} == {RejectReason.OVERLOADED}
    world.run()
    assert world.unfinished() == []


# -- ServerlessLLM


def test_a_model_fills_four_slots_then_takes_over_an_unused_gpu() -> None:
    world = pool("sllm", 3)
    said = arrive(world, *[f"m0.{index}" for index in range(6)])
    assert starts(said) == [("g0", "m0"), ("g1", "m0")]
    assert len(world.instances["g0"].turn.members) == 4  # type: ignore[union-attr]
    assert starts(arrive(world, "m1.a")) == [("g2", "m1")]


def test_requests_of_one_model_go_to_its_gpu_with_the_shortest_queue() -> None:
    world = pool("sllm", 2)
    arrive(world, *[f"m0.{index}" for index in range(5)], max_new=100)
    (joined,) = arrive(world, "m0.last")
    assert isinstance(joined, ExtendTurn)
    assert joined.instance_id == "g1"


def test_without_an_unused_gpu_the_one_that_did_nothing_for_longest_is_taken_over() -> None:
    world = pool("sllm", 2)
    arrive(world, "m0.a", max_new=2)
    step(world, "g0", 2)
    world.now_s = 1.0
    arrive(world, "m1.a", max_new=2)
    step(world, "g1", 2)
    said = arrive(world, "m2.a")
    assert said[0] == EvictWeights("g0", "m0")
    assert starts(said) == [("g0", "m2")]


def used_twice(baseline: str) -> PolicyWorld:
    """Both GPUs have been used, g0 first; now g0 is being switched to m2, and g1 is idle."""
    world = pool(baseline, 2)
    arrive(world, "m0.a", max_new=1)
    step(world, "g0")
    arrive(world, "m1.a", max_new=1)
    step(world, "g1")
    assert starts(arrive(world, "m2.a")) == [("g0", "m2")]
    return world


def test_an_idle_gpu_is_taken_over_before_one_that_is_being_switched() -> None:
    assert starts(arrive(used_twice("sllm"), "m3.a")) == [("g1", "m3")]


def test_the_artifact_takes_a_gpu_that_is_being_switched_for_the_idlest() -> None:
    """What costs the published baseline most: requests pile up behind a switch."""
    world = used_twice("sllm artifact")
    assert arrive(world, "m3.a") == []  # queued behind m2, although g1 is idle
    step(world, "g0")
    assert starts(arrive(world, "m4.a")) == [("g1", "m4")]


def test_a_switch_that_is_over_counts_as_something_done() -> None:
    world = used_twice("sllm artifact")
    world.now_s += 0.6  # the switch took 0.5 s; its first prompt is under way
    assert starts(arrive(world, "m3.a")) == [("g1", "m3")]


def test_no_model_is_preempted_by_another_and_queues_are_served_in_order() -> None:
    world = pool("sllm", 1)
    arrive(world, "m0.a", max_new=50)
    step(world, "g0", 3)
    assert arrive(world, "m1.a", "m2.a", "m3.a") == []
    order = [model for _, model in starts(world.run())]
    assert order == ["m1", "m2", "m3"]


def test_all_waiting_requests_of_a_model_take_part_in_its_run() -> None:
    world = pool("sllm", 1)
    arrive(world, "m0.a", max_new=50)
    step(world, "g0", 3)
    arrive(world, "m1.a", "m2.a", "m1.b")
    order = [model for _, model in starts(world.run())]
    assert order == ["m1", "m2"]


@pytest.mark.parametrize("baseline", ["sllm", "sllm+"])
def test_without_a_first_token_for_fifteen_seconds_a_request_is_dropped_when_the_next_arrives(baseline: str) -> None:
    world = pool(baseline, 1)
    arrive(world, "m0.a", max_new=1000)
    step(world, "g0", 2)
    arrive(world, "m1.late", max_new=2000)
    world.now_s = 14.9
    assert not [each for each in arrive(world, "m0.b") if isinstance(each, RejectRequest)]
    step(world, "g0", 2)
    world.now_s = 15.2
    dropped = [each for each in arrive(world, "m0.c") if isinstance(each, RejectRequest)]
    assert [(each.request_id, each.reason) for each in dropped] == [("m1.late", RejectReason.OVERLOADED)]
    world.now_s = 40.0
    dropped = [each for each in arrive(world, "m0.d") if isinstance(each, RejectRequest)]
    assert "m0.a" not in {each.request_id for each in dropped}  # it has had its first token


# -- ServerlessLLM+


def oracle(world: PolicyWorld, name: str, new: int) -> list[Command]:
    """A request whose true length is known; its limit says nothing."""
    request = Request(name, name.split(".")[0], world.now_s, 16, 2000, Slo(), oracle_new_tokens=new)
    world.arrive(name, request.model, 16, 2000, new)
    world.mailbox[-1] = RequestArrived(request)
    return world.deliver_all()


def test_the_oracle_lets_the_shortest_group_go_first() -> None:
    world = pool("sllm+", 1)
    oracle(world, "m0.a", 30)
    oracle(world, "m1.long", 900)
    oracle(world, "m2.short", 100)
    oracle(world, "m3.middle", 400)
    assert [model for _, model in starts(world.run())] == ["m2", "m3", "m1"]


def test_a_shorter_group_takes_the_gpu_and_what_was_computed_is_lost() -> None:
    world = pool("sllm+", 1)
    oracle(world, "m0.a", 1000)
    step(world, "g0", 5)
    assert oracle(world, "m1.a", 20) == [EndTurn("g0", 1)]
    said = step(world, "g0")
    assert ("g0", "m1") in starts(said)
    assert not world.requests["m0.a"].prefilled
    assert world.requests["m0.a"].blocks == 0
    assert [model for _, model in starts(world.run())] == ["m0"]
    assert world.requests["m0.a"].context == 1016


def test_a_group_that_would_not_be_done_sooner_waits() -> None:
    world = pool("sllm+", 1, switch_s=5.0)
    oracle(world, "m0.a", 100)
    step(world, "g0", 2)
    assert oracle(world, "m1.a", 20) == []  # its switch takes longer than what is left


# -- static placement


def test_a_model_runs_on_its_own_gpus_alone() -> None:
    world = pool("static", 2)
    assert starts(arrive(world, "m0.a", "m1.a")) == [("g0", "m0"), ("g1", "m1")]
    assert arrive(world, "m2.a") == []  # nobody has it
    said = world.run()
    assert not [each for each in said if isinstance(each, EvictWeights)]
    assert world.unfinished() == ["m2.a"]


def test_replicas_share_the_requests_of_a_model() -> None:
    world = PolicyWorld(
        list(pool("static", 1).models.values()), pool("static", 1).limits, "static", {"a": "m0", "b": "m0"}
    )
    for name in ("a", "b"):
        world.join(InstanceSpec(name, Role.MIXED, 10**6, 1000, max_resident_models=1))
    world.deliver_all()
    said = arrive(world, *[f"m0.{index}" for index in range(4)])
    assert starts(said) == [("a", "m0"), ("b", "m0")]
    assert {len(gpu.turn.members) for gpu in world.instances.values() if gpu.turn} == {2}
