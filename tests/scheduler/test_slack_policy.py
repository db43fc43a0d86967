"""What the policy ``slack`` decides: who goes first, who rides along, what is loaded, kept and evicted."""

from __future__ import annotations

import pytest

from aegaeon.core.command import Command, EvictWeights, ExtendTurn, LoadWeights, RejectReason, StartTurn
from aegaeon.core.instance import InstanceSpec, Role
from aegaeon.core.slo import Slo
from aegaeon.scheduler.policies.slack.homes import Homes
from aegaeon.scheduler.policies.slack.traffic import Traffic
from aegaeon.scheduler.policies.slack.tuning import Tuning
from tests.worlds.toy_moves import arrive, end_turn, starts
from tests.worlds.toy_world import BLOCK_BYTES, ToyWorld, make_costs, make_instance, make_limits, make_models


def world(instances: int = 1, models: int = 6, **more: int) -> ToyWorld:
    specs = make_models(models)
    toy = ToyWorld(specs, make_limits(max_queued_requests=more.pop("max_queued", 4096)), policy="slack")
    for index in range(instances):
        toy.join(make_instance(f"i{index}", Role.MIXED, max_resident_models=more.get("residents", 4)))
    toy.deliver_all()
    return toy


def test_an_arrival_on_an_idle_instance_runs_at_once_and_goes_on_decoding_in_its_turn() -> None:
    toy = world()
    (start,) = arrive(toy, "m0.a")
    assert isinstance(start, StartTurn)
    assert (start.prefill, start.decode, start.keep_prefilled) == (("m0.a",), (), True)
    assert start.quota_s is not None
    assert start.quota_s >= Tuning().turn_s


def test_whoever_arrives_rides_along_in_the_turn_of_its_model() -> None:
    toy = world()
    arrive(toy, "m0.a")
    assert arrive(toy, "m0.b") == [ExtendTurn("i0", 1, prefill=("m0.b",))]


def test_a_model_that_waits_is_loaded_while_another_runs() -> None:
    toy = world()
    arrive(toy, "m0.a")
    assert arrive(toy, "m1.a") == [], "the copy engine is busy with m0"
    toy.now_s += 1.0
    assert arrive(toy, "m2.a") == [LoadWeights("i0", "m1")]


def test_the_model_with_the_least_slack_goes_first_and_takes_all_its_members() -> None:
    toy = world()
    arrive(toy, "m0.a")
    toy.now_s += 1.0
    arrive(toy, "m1.a", "m1.b")
    end_turn(toy)  # m0 produces tokens ahead of their time; m1 is loaded meanwhile
    end_turn(toy)
    turn = toy.instances["i0"].turn
    assert turn is not None
    assert turn.command.model == "m1"
    assert set(turn.members) == {"m1.a", "m1.b"}


def test_devices_that_are_idle_share_the_work() -> None:
    toy = world(instances=3)
    said = arrive(toy, "m0.a", "m1.a", "m2.a")
    assert sorted((start.instance_id, start.model) for start in starts(said)) == [
        ("i0", "m0"),
        ("i1", "m1"),
        ("i2", "m2"),
    ]


def test_the_resident_model_without_work_is_evicted_first() -> None:
    toy = world(residents=2)
    arrive(toy, "m0.a", max_new=1)
    toy.run()
    arrive(toy, "m1.a", max_new=2000)
    toy.now_s += 1.0
    said = arrive(toy, "m2.a")
    assert [command for command in said if isinstance(command, EvictWeights)] == [EvictWeights("i0", "m0")]
    assert LoadWeights("i0", "m2") in said


def test_kv_comes_back_with_the_weights_of_its_model() -> None:
    toy = world(residents=2)
    arrive(toy, "m0.a", "m1.a", "m2.a", max_new=2000)
    said: list[Command] = []
    while not (loads := [command for command in said if isinstance(command, LoadWeights) and command.kv]):
        toy.now_s += 0.5
        said = end_turn(toy)
    (load,) = loads
    assert load.kv == (f"{load.model}.a",)
    assert load.kv[0] in toy.instances["i0"].on_device


def test_nobody_waits_at_a_full_slab_cache_for_one_that_is_late() -> None:
    models = make_models(3)
    toy = ToyWorld(models, make_limits(slabs=8), make_costs(models), policy="slack")
    toy.join(make_instance("i0", Role.MIXED, max_resident_models=3))
    toy.deliver_all()
    arrive(toy, "m0.holder", prompt=500, max_new=400)
    arrive(toy, "m1.large", prompt=900, max_new=20)
    end_turn(toy)
    toy.now_s += 60.0  # the large one could have been served only if it had been alone
    arrive(toy, "m2.small", prompt=16, max_new=20)
    while not toy.requests["m2.small"].prefilled:
        end_turn(toy)
    assert "m0.holder" in toy.unfinished(), "the small one did not wait until the cache was empty"


def test_weights_and_kv_share_the_memory_of_a_device() -> None:
    models = make_models(4, weight_bytes=40 * BLOCK_BYTES)
    toy = ToyWorld(models, make_limits(), make_costs(models), policy="slack")
    spec = InstanceSpec(
        "i0", Role.MIXED, 60 * BLOCK_BYTES, 90 * BLOCK_BYTES, max_resident_models=4, memory_bytes=100 * BLOCK_BYTES
    )
    toy.join(spec)
    toy.deliver_all()
    arrive(toy, "m0.a", prompt=400, max_new=200)  # 25 blocks and more
    said = arrive(toy, "m1.a", prompt=16, max_new=20)
    assert LoadWeights("i0", "m1") not in said, "two models' weights and this KV do not fit"
    toy.run()
    assert toy.unfinished() == []


def test_a_late_request_waits_behind_punctual_ones_and_is_finished_all_the_same() -> None:
    toy = world()
    arrive(toy, "m0.late", max_new=30)
    toy.lose("i0")
    toy.deliver_all()
    toy.now_s += 60.0  # far beyond what can be caught up
    arrive(toy, "m1.a", max_new=10)
    toy.join(make_instance("i1", Role.MIXED))
    (start,) = starts(toy.deliver_all())
    assert start.model == "m1"
    toy.run()
    assert toy.unfinished() == []


def test_tighter_targets_go_first() -> None:
    models = make_models(2)
    urgent = [
        models[0],
        type(models[1])(**{f: getattr(models[1], f) for f in models[1].__slots__} | {"slo": Slo(2, 0.1)}),
    ]
    toy = ToyWorld(urgent, make_limits(), policy="slack")
    arrive(toy, "m0.a")
    arrive(toy, "m1.a")
    toy.join(make_instance("i0", Role.MIXED))
    (start,) = starts(toy.deliver_all())
    assert start.model == "m1"


def test_a_full_queue_is_answered_with_a_time_to_come_again() -> None:
    toy = world(max_queued=3)
    toy.lose("i0")
    arrive(toy, "m0.a", "m1.a", "m2.a", "m3.a")
    (rejected,) = toy.rejected
    assert rejected.reason is RejectReason.OVERLOADED
    assert rejected.retry_after_s is not None
    assert rejected.retry_after_s >= make_limits().min_retry_after_s


def test_a_crowd_on_an_idle_pool_is_told_what_the_prompts_before_it_take() -> None:
    # Nobody has been served yet, but what a prompt takes is known: 10 ms and 1 ms a token, on two instances.
    toy = world(instances=2, max_queued=8)
    arrive(toy, *(f"m{index % 4}.{index}" for index in range(8)), prompt=2000)
    arrive(toy, "m5.late")
    (rejected,) = toy.rejected
    assert rejected.retry_after_s == pytest.approx(8 * 2.01 / 2)


@pytest.mark.parametrize("policy", ["aegaeon", "slack", "sllm"])
def test_a_slow_queue_is_owned_up_to_by_every_policy(policy: str) -> None:
    toy = ToyWorld(make_models(6), make_limits(max_queued_requests=4), policy=policy)
    toy.join(make_instance("i0", Role.MIXED))
    toy.deliver_all()
    arrive(toy, *(f"m{index}.a" for index in range(6)), max_new=2000, prompt=100)
    waits_s = [rejected.retry_after_s for rejected in toy.rejected]
    for _ in range(40):
        toy.now_s += 5.0  # the device is far slower than it says
        toy.step("i0")
        toy.deliver_all()
        arrive(toy, f"m5.{toy.now_s}", max_new=2000, prompt=100)
    waits_s += [rejected.retry_after_s for rejected in toy.rejected]
    assert max(wait_s or 0.0 for wait_s in waits_s) > 5.0


@pytest.mark.parametrize("change", [{"turn_s": 0.0}, {"typical_tokens": 0}, {"horizon_s": -1.0}])
def test_tuning_that_makes_no_sense_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        Tuning(**change)  # type: ignore[arg-type]


def spread(homes: Homes, start_s: float = 0.0) -> None:
    """Requests for all of 20 models in turn, with nothing under way: nobody moves, nobody has much traffic."""
    for index in range(200):
        homes.route(f"m{index % 20}", [0, 0], start_s)


def test_homes_are_spread_evenly_and_models_move_only_from_a_busy_node_to_one_with_room() -> None:
    models = make_models(20, weight_bytes=100)
    homes = Homes(models, nodes=2, host_bytes=1100)
    spread(homes)
    first, second = homes.at_home(0)[:2]
    assert [homes.homes(model) for model in homes.at_home(1)] == [(1,)] * 10 + [(0,)] * 10, "its own come first"
    assert homes.route(first, [10, 0], 0.0) == 0, "a small difference moves nothing"
    assert homes.route(first, [100, 10], 0.0) == 1
    assert homes.route(first, [10, 100], 30.0) == 1, "it has moved a moment ago"
    assert homes.route(first, [10, 100], 90.0) == 0
    assert homes.route(first, [100, 10], 180.0) == 1
    assert homes.route(second, [100, 10], 180.0) == 0, "the other node's memory is full"


def test_a_model_with_much_traffic_gets_another_home_instead_of_moving_and_loses_it_with_the_traffic() -> None:
    homes = Homes(make_models(20, weight_bytes=100), nodes=2, host_bytes=1100)
    (home,) = homes.homes("m0")
    busy = [20 if node == home else 0 for node in (0, 1)]
    assert homes.route("m0", busy, 0.0) == 1 - home
    assert set(homes.homes("m0")) == {0, 1}
    assert homes.route("m0", busy[::-1], 0.0) == home, "to the idlest of its homes"
    spread(homes, 1000.0)
    assert homes.homes("m0") == (0,), "one like the others, now"


def test_a_second_home_needs_room() -> None:
    homes = Homes(make_models(2, weight_bytes=100), nodes=2, host_bytes=150)
    (home,) = homes.homes("m0")
    assert homes.route("m0", [100 if node == home else 0 for node in (0, 1)], 0.0) == home


def test_traffic_is_what_came_lately_whatever_the_clock_says() -> None:
    traffic = Traffic()
    assert traffic.share("m0", 0.0) == 0.0
    for _ in range(30):
        traffic.note("m0", 0.0)
    for _ in range(10):
        traffic.note("m1", 0.0)
    assert traffic.share("m0", 0.0) == pytest.approx(0.75)
    traffic.note("m1", 600.0)
    assert traffic.share("m0", 600.0) < 0.01
    traffic.note("m0", 1e6)
    assert traffic.share("m0", 1e6) == pytest.approx(1.0)


def test_a_request_for_a_model_without_a_home_goes_where_there_are_fewest() -> None:
    assert Homes([], nodes=3, host_bytes=1).route("m9", [3, 1, 2], 0.0) == 1
