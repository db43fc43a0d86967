"""What a driver does about instances that die or hang, and about models that fail: at the pace of a played clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from aegaeon.core.event import TurnEndReason
from aegaeon.core.instance import InstanceSpec
from aegaeon.runtime.node.core import driver_inputs as i
from aegaeon.runtime.wire import messages as m
from aegaeon.runtime.wire.model_failure import FailureKind, ModelFailure, ModelProblem
from aegaeon.runtime.wire.pulse_reading import PulseReading
from tests.worlds.core_world import CoreWorld, members, prefill

PID = 4711
BEAT = PulseReading(PID, beats=1, passes=1, waiting=True, expected_s=None)


@pytest.fixture
def make() -> Iterator[Callable[..., CoreWorld]]:
    worlds: list[CoreWorld] = []

    def made(**options: Any) -> CoreWorld:
        worlds.append(CoreWorld(**options))
        return worlds[-1]

    yield made
    for world in worlds:
        world.close()


@pytest.fixture
def world(make: Callable[..., CoreWorld]) -> CoreWorld:
    return make()


def test_an_instance_that_stops_is_told_of_killed_and_its_requests_go_to_another(world: CoreWorld):
    instance = world.join(PID, pulse=BEAT)  # as after SIGSTOP: no other beat
    world.submit("a")
    prefill(instance)
    instance.expect(m.RunTurn)
    world.pass_time(6)
    assert world.instance_state().trouble == "gives no sign of life"
    assert world.driver.killed == []
    world.pass_time(6)
    assert world.driver.killed == [PID]
    world.die()  # its process ends
    assert world.frontend.expect(m.Interrupted).instance_id == "i0:0"
    world.frontend.send(m.Resume("a", (100,)))
    world.await_restart()
    assert "gives no sign of life" in world.instance_state().trouble
    assert set(members(world.join().expect(m.RunTurn))) == {"a"}


def test_an_instance_that_even_a_kill_does_not_end_is_given_up(world: CoreWorld):
    world.join(PID, pulse=BEAT)
    world.pass_time(12)
    assert world.driver.killed == [PID]
    assert not world.restarted
    world.pass_time(11)
    assert world.restarted


def test_a_step_that_never_ends_is_noticed_though_the_process_lives(world: CoreWorld):
    world.join(PID, pulse=BEAT)
    for beats in range(2, 32):
        world.driver.pulses["i0:0"] = PulseReading(PID, beats, passes=2, waiting=False, expected_s=0.1)
        world.pass_time(0.5)
    assert world.driver.killed == [PID]


def test_the_end_of_a_process_is_watched_once_its_number_is_known(world: CoreWorld):
    world.join(PID, pulse=BEAT, starts=False)
    assert world.driver.pids == {}
    world.pass_time(0.5)
    assert world.driver.pids == {"i0:0": PID}


def test_an_instance_that_dies_at_its_start_is_started_again_after_growing_pauses(world: CoreWorld):
    world.join(starts=False)
    starts_s = []
    for death in range(6):
        world.die()
        died_s = world.time_s
        while len(world.restarted) == death:
            trouble = world.instance_state().trouble
            assert "killed" in trouble
            assert len(world.restarted) > death or "starts again in" in trouble
        starts_s.append(world.time_s - died_s)
        world.join(starts=False)
    assert starts_s == pytest.approx([0, 1, 2, 4, 8, 16], abs=0.5)


def test_an_instance_that_there_is_no_descriptor_for_is_tried_again(world: CoreWorld):
    refusals = [OSError("too many open files")] * 2

    def restart(spec: InstanceSpec) -> None:
        if refusals:
            raise refusals.pop()
        world.restarted.append(spec)

    world.driver.restart = restart
    world.join()
    world.die()
    assert "too many open files" in world.instance_state().trouble
    world.await_restart()
    assert not refusals


def test_what_a_frontend_that_leaves_had_under_way_is_released(world: CoreWorld):
    instance = world.join()
    second = world.attach("g")
    world.submit("a", frontend=second, frontend_id="g")
    turn = instance.expect(m.RunTurn)
    second.send(m.DetachFrontend("g"))
    assert instance.expect(m.Forget).request_ids == ("a",)
    instance.send(m.Forgotten(("a",), ()))
    instance.send(m.TurnOver(turn.turn_id, TurnEndReason.DRAINED, (), (), switched=False))
    assert instance.expect(m.DetachFrontend).frontend_id == "g"
    assert world.kv.counts.used_bytes == 0


@pytest.mark.parametrize("policy", ["slack", "aegaeon", "sllm"])
def test_a_model_that_failed_is_tried_again_and_serves(make: Callable[..., CoreWorld], policy: str):
    world = make(policy=policy)
    world.driver.host.broken["two"] = "there is no such folder", FailureKind.TRANSIENT
    instance = world.join()
    world.submit("bad", "two")
    failed = world.frontend.expect(m.ModelState)
    assert (failed.model, failed.awaits_files) == ("two", False)
    assert failed.retry_s == world.time_s + 1
    assert world.frontend.expect(m.Rejected).retry_after_s == 1
    turn = instance.expect(m.RunTurn)
    assert instance.expect(m.Forget).request_ids == ("bad",)
    world.submit("early", "two")
    assert world.frontend.expect(m.Rejected).request_id == "early"
    world.driver.host.broken.clear()
    world.pass_time(1.5)  # not while the turn in which it failed is under way
    assert not world.frontend.has(m.ModelState)
    instance.send(m.Forgotten(("bad",), ()))
    instance.send(m.TurnOver(turn.turn_id, TurnEndReason.DRAINED, (), (), switched=False))
    world.pass_time(1.5)
    assert world.frontend.expect(m.ModelState) == m.ModelState("two", None)
    world.submit("good", "two")
    again = instance.expect(m.RunTurn)
    assert [member.request_id for member in again.prefill] == ["good"]
    assert instance.expect(m.HostWeights).model == "two"


def test_a_model_that_fails_again_and_again_waits_longer_and_late_frontends_hear_of_it(world: CoreWorld):
    looks_s: list[float] = []

    def examine(failure: ModelFailure) -> ModelProblem:
        looks_s.append(world.time_s)
        return ModelProblem(failure.reason, failure.kind)

    world.driver.examine = examine
    world.join()
    world.driver.tell(i.WeightsUnreadable("two", "no descriptor", FailureKind.TRANSIENT))
    began_s = world.time_s
    world.pass_time(130, step_s=1.0)
    assert [look_s - began_s for look_s in looks_s] == [1, 3, 7, 15, 31, 63, 123]
    assert world.attach("late").expect(m.ModelState).failure == "no descriptor"


def test_weights_that_an_instance_refuses_for_a_moment_are_tried_again(world: CoreWorld):
    instance = world.join()
    world.submit("a")
    turn = instance.expect(m.RunTurn)
    weights = instance.expect(m.HostWeights)
    instance.send(m.WeightsRefused("one", weights.lease_id, "too many open files", FailureKind.TRANSIENT))
    assert world.driver.host.leases == {}
    instance.send(m.TurnOver(turn.turn_id, TurnEndReason.FAILED, (), ("a",), switched=False))
    assert world.frontend.expect(m.Rejected).detail == "too many open files"
    world.pass_time(1.5)
    world.submit("b")
    again = instance.expect(m.RunTurn)
    assert [member.request_id for member in again.prefill] == ["b"]
    assert instance.expect(m.HostWeights).lease_id != weights.lease_id
