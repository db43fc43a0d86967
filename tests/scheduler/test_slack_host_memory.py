"""Host memory that does not hold every model: who is read from disk, and who makes room."""

from __future__ import annotations

from dataclasses import replace

from aegaeon.core.command import Command, FetchWeights, LoadWeights, StartTurn
from tests.worlds.toy_moves import arrive
from tests.worlds.toy_world import ToyWorld, make_instance, make_limits, make_models


def world(hosted: int = 2, models: int = 4, instances: int = 1) -> ToyWorld:
    """Host memory for ``hosted`` models."""
    specs = make_models(models)
    limits = replace(make_limits(), host_weight_bytes=hosted * specs[0].weight_bytes)
    toy = ToyWorld(specs, limits, policy="slack")
    for index in range(instances):
        toy.join(make_instance(f"i{index}", max_resident_models=4))
    toy.deliver_all()
    return toy


def fetches(said: list[Command]) -> list[FetchWeights]:
    return [command for command in said if isinstance(command, FetchWeights)]


def test_a_model_comes_from_disk_before_a_device_has_it() -> None:
    said = arrive(world(), "m0.a")
    assert said[0] == FetchWeights("m0")
    assert [command.model for command in said if isinstance(command, StartTurn)] == ["m0"]


def test_the_disk_reads_one_model_at_a_time() -> None:
    toy = world()
    for name in ("m0", "m1"):
        toy.arrive(f"{name}.a", name)
    said = [*toy.deliver(), *toy.deliver()]
    assert fetches(said) == [FetchWeights("m0")]
    assert fetches(toy.deliver()) == [FetchWeights("m1")], "m0 is there"


def test_before_there_is_an_instance_what_fits_is_read_once() -> None:
    toy = world(instances=0)
    said = arrive(toy, "m0.a", "m1.a", "m2.a", "m3.a")
    assert fetches(said) == [FetchWeights("m0"), FetchWeights("m1")], "none of them can be served before it makes room"
    assert fetches(arrive(toy, "m2.b")) == []
    toy.join(make_instance("i0", max_resident_models=4))
    assert any(isinstance(command, StartTurn) for command in toy.deliver_all())
    toy.run()


def test_a_model_without_work_makes_room_the_longest_unserved_first() -> None:
    toy = world()
    for name in ("m0.a", "m1.a"):
        arrive(toy, name, max_new=4)
        toy.run()
    assert fetches(arrive(toy, "m2.a")) == [FetchWeights("m2", ("m0",))]


def test_who_can_still_be_on_time_keeps_its_place_and_who_is_late_loses_it() -> None:
    toy = world()
    arrive(toy, "m0.a", "m1.a")
    assert fetches(arrive(toy, "m2.a")) == [], "m0 and m1 have work, and are on time"
    toy.now_s += 30.0
    said = arrive(toy, "m2.b")
    assert fetches(said) == [FetchWeights("m2", ("m1",))], "m0 runs; nobody of m1 can be saved"


def test_who_was_late_when_the_disk_could_have_been_done_is_no_reason_to_read() -> None:
    toy = world()
    arrive(toy, "m0.a", "m1.a", "m2.a")
    toy.now_s += 30.0
    assert fetches(arrive(toy, "m0.b")) == [], "m2 is as late as m1"


def test_nobody_waits_for_ever() -> None:
    toy = world()
    arrive(toy, "m0.a", "m1.a", "m2.a", max_new=4000)
    said: list[Command] = []
    while not fetches(said):
        toy.step("i0")
        said = toy.deliver_all()
        if toy.now_s > 200.0:
            break
    assert 70.0 <= toy.now_s < 80.0, "a minute after it became late, though the others are on time"


def test_all_work_is_done_where_one_model_fits() -> None:
    toy = world(hosted=1)
    arrive(toy, *(f"m{index % 4}.{index}" for index in range(12)), max_new=20)
    toy.run()
    assert toy.unfinished() == []


def test_a_model_that_never_fits_is_read_for_every_load() -> None:
    specs = make_models(2)
    toy = ToyWorld(specs, replace(make_limits(), host_weight_bytes=None), policy="slack")
    small = replace(make_limits(), host_weight_bytes=specs[0].weight_bytes - 1)
    toy.limits = small
    toy.scheduler = toy.fresh_scheduler()
    toy.limits = make_limits()  # the toy host has no books of it
    toy.join(make_instance("i0"))
    toy.deliver_all()
    said = arrive(toy, "m0.a", "m1.a")
    assert fetches(said) == []
    assert any(isinstance(command, StartTurn | LoadWeights) for command in said)
