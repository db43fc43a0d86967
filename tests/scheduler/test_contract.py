"""The contract of schedulers as code: schedulers that break a rule are caught, with the command and the rule."""

from __future__ import annotations

import pytest

from aegaeon.core.command import (
    Command,
    DropKv,
    EndTurn,
    EvictKv,
    EvictWeights,
    ExtendTurn,
    FetchWeights,
    LoadWeights,
    RejectReason,
    RejectRequest,
    ReleaseRequest,
    StartTurn,
)
from aegaeon.core.event import (
    Event,
    InstanceJoined,
    KvDropped,
    ModelFailed,
    RequestArrived,
    RequestCancelled,
    RequestFinished,
    RequestPrefilled,
    TurnEnded,
    TurnEndReason,
)
from aegaeon.core.instance import Role
from aegaeon.core.request import Request
from aegaeon.core.slo import Slo
from aegaeon.scheduler.contract import CheckedScheduler, ContractError
from tests.worlds.toy_world import make_instance, make_limits, make_models


class Scripted:
    """Says what it is told to say."""

    def __init__(self) -> None:
        self.next: list[Command] = []

    def handle(self, event: Event, now_s: float) -> list[Command]:
        said, self.next = self.next, []
        return said


class World:
    """A checked scheduler with two models, a mixed and a prefill instance, and requests a and b (m0) and c (m1)."""

    def __init__(self) -> None:
        self.scripted = Scripted()
        limits = make_limits(host_weight_bytes=150)
        self.checked = CheckedScheduler(self.scripted, make_models(3), limits)
        self.tell(InstanceJoined(make_instance("i", max_resident_models=1)))
        self.tell(InstanceJoined(make_instance("p", Role.PREFILL)))
        for name, model in (("a", "m0"), ("b", "m0"), ("c", "m1")):
            self.tell(RequestArrived(Request(name, model, 0.0, 16, 16, Slo())))

    def tell(self, event: Event, *commands: Command) -> None:
        self.scripted.next = list(commands)
        self.checked.handle(event, 0.0)

    def say(self, *commands: Command) -> None:
        self.tell(KvDropped("nobody", 1), *commands)


def start(turn_id: int = 1, instance: str = "i", model: str = "m0", prefill: str = "a", decode: str = "") -> StartTurn:
    return StartTurn(instance, turn_id, model, tuple(prefill), tuple(decode), None, instance == "i")


@pytest.mark.parametrize(
    ("commands", "rule"),
    [
        ([start(instance="x")], "no such instance"),
        ([start(), start(2, prefill="b")], "one turn at a time"),
        ([start(3), start(2, "p", prefill="b")], "numbered upwards"),
        ([start(prefill="z")], "z is over, or never arrived"),
        ([start(prefill="c")], "c is of m1"),
        ([start(), start(2, "p")], "a is in a turn of i"),
        ([start(prefill="", decode="a")], "a is not prefilled"),
        ([start(1, "p", prefill="a", decode="b")], "a prefill instance does not decode"),
        ([ExtendTurn("i", 1, ("a",))], "not under way"),
        ([start(), EndTurn("i", 2)], "not under way"),
        ([start(), ExtendTurn("i", 1, ("a",))], "a is in a turn of i"),
        ([LoadWeights("i", "m0"), LoadWeights("i", "m0")], "there already"),
        ([LoadWeights("i", "m0"), LoadWeights("i", "m1")], "no room beside m0"),
        ([LoadWeights("i", "m0", ("a",))], "a is not prefilled"),
        ([start(), EvictWeights("i", "m0")], "it runs"),
        ([start(), EvictKv("i", ("a",))], "in use"),
        ([DropKv("a"), DropKv("a")], "dropped already"),
        ([DropKv("a"), start()], "being dropped"),
        ([DropKv("z")], "over, or never arrived"),
        ([ReleaseRequest("a"), RejectRequest("a", RejectReason.OVERLOADED)], "over, or never arrived"),
        ([FetchWeights("m0"), start(prefill="c", model="m1")], "not in host memory"),
        ([FetchWeights("m0"), FetchWeights("m0")], "on its way"),
        ([FetchWeights("m0"), FetchWeights("m1")], "host memory is full"),
        ([FetchWeights("m0", ("m1",))], "not there"),
        ([FetchWeights("m0"), start(), FetchWeights("m1", ("m0",))], "on a device"),
    ],
)
def test_a_broken_rule_is_told_with_its_command(commands: list[Command], rule: str) -> None:
    with pytest.raises(ContractError, match=rule) as told:
        World().say(*commands)
    assert type(commands[-1]).__name__ in str(told.value)


def test_a_group_has_a_limit() -> None:
    world = World()
    names = [f"r{index}" for index in range(99)]
    for name in names:
        world.tell(RequestArrived(Request(name, "m0", 0.0, 16, 16, Slo())))
    with pytest.raises(ContractError, match="prompts make a group"):
        world.say(StartTurn("p", 1, "m0", tuple(names)))


def test_a_cancelled_request_must_be_released() -> None:
    with pytest.raises(ContractError, match="a was not released"):
        World().tell(RequestCancelled("a"))


def test_requests_of_a_failed_model_must_be_rejected() -> None:
    with pytest.raises(ContractError, match="a, b were not rejected"):
        World().tell(ModelFailed("m0", "broken"))


def test_a_life_that_keeps_all_rules_passes() -> None:
    world = World()
    world.say(start(1, "p", prefill="ab"))
    world.tell(RequestPrefilled("p", 1, "a", 17), start(2, prefill="", decode="a"))
    world.tell(RequestPrefilled("p", 1, "b", 17), ExtendTurn("i", 2, (), ("b",)))
    world.tell(TurnEnded("p", 1, TurnEndReason.DRAINED))
    world.tell(RequestFinished("i", 2, "a"), EndTurn("i", 2))
    world.tell(TurnEnded("i", 2, TurnEndReason.PREEMPTED, (("b", 18),)), EvictKv("i", ("b",)), EvictWeights("i", "m0"))
    world.say(start(3, model="m1", prefill="c"), DropKv("b"))
    world.tell(KvDropped("b", 18), start(4, "p", prefill="b"))
    world.tell(RequestCancelled("c"), ReleaseRequest("c"))
