"""What the driver does about instances that die or hang, and about models that fail: at the pace of a played clock."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aegaeon.core.event import TurnEndReason
from aegaeon.runtime.process.os_process import OsProcess
from aegaeon.runtime.wire import messages as m
from aegaeon.runtime.wire.model_failure import FailureKind, ModelProblem
from aegaeon.runtime.wire.pulse import Pulse, PulseReader, create_pulse
from tests.runtime.node.test_driver import World, prefill

TIMEOUT_S = 10.0


class PlayedClock:
    """A clock that stands still until the test moves it."""

    def __init__(self) -> None:
        self.time_s = 1000.0

    def now_s(self) -> float:
        return self.time_s


class DyingWorld(World):
    """A world whose clock, and whose instances' ends, are the test's to say."""

    def __init__(self, folder: Path, **options: object) -> None:
        self.played = PlayedClock()
        self.killed: list[int] = []
        super().__init__(
            folder, clock=self.played, instance_timeout_s=TIMEOUT_S, open_process=self._open_process, **options
        )

    def _open_process(self, pid: int) -> OsProcess:
        process = OsProcess(os.getpid())  # which is never watched or killed
        process.kill = lambda: self.killed.append(pid)  # type: ignore[method-assign]
        return process

    def pass_time(self, seconds: float, step_s: float = 0.5) -> None:
        """The driver's loop comes round after every step."""
        for _ in range(round(seconds / step_s)):
            self.played.time_s += step_s
            self.settle()

    def settle(self) -> None:
        """Wait until the driver has done what is due: twice round its loop, timers come after messages."""
        for _ in range(2):
            done = threading.Event()
            self.driver.wakeup.post(done.set)
            assert done.wait(20)

    def die(self) -> None:
        self.settle()
        key = f"i0:{self.incarnation}"
        self.driver.wakeup.post(lambda: self.driver.instance_died(key, "killed"))
        self.settle()

    def instance_state(self) -> m.InstanceState:
        """As reported last."""
        self.pass_time(0.5)
        reports = [self.frontend.expect(m.NodeState)]
        while any(isinstance(message, m.NodeState) for message in self.frontend.inbox):
            reports.append(self.frontend.expect(m.NodeState))
        (state,) = reports[-1].instances
        return state


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Callable[..., DyingWorld]]:
    worlds: list[DyingWorld] = []

    def make(**options: object) -> DyingWorld:
        worlds.append(DyingWorld(tmp_path, **options))
        return worlds[-1]

    yield make
    for world in worlds:
        world.close()


def open_descriptors() -> int:
    """Of this process, without those of garbage that other tests left."""
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


def beating() -> tuple[PulseReader, Pulse]:
    fd = create_pulse()
    reader, pulse = PulseReader(os.dup(fd)), Pulse(fd, 0.001)
    while not reader.read().beats:
        pass
    return reader, pulse


def test_an_instance_that_stops_is_told_of_killed_and_its_requests_go_to_another(made: Callable[..., DyingWorld]):
    world = made()
    reader, pulse = beating()
    instance = world.join(reader, pid=4711)
    world.submit("a")
    prefill(instance)
    instance.expect(m.RunTurn)
    pulse.close()  # as after SIGSTOP: no beat any more
    world.pass_time(6)
    assert world.instance_state().trouble == "gives no sign of life"
    assert world.killed == []
    world.pass_time(6)
    assert world.killed == [4711]
    world.die()  # its process ends
    assert world.frontend.expect(m.Interrupted).instance_id == "i0:0"
    world.frontend.link.send(m.Resume("a", (100,)))
    assert world.restart_seen.wait(20)
    assert "gives no sign of life" in world.instance_state().trouble
    again = world.join().expect(m.RunTurn)
    assert [member.request_id for member in (*again.prefill, *again.decode)] == ["a"]


def test_an_instance_that_even_a_kill_does_not_end_is_given_up(made: Callable[..., DyingWorld]):
    world = made()
    reader, pulse = beating()
    world.join(reader, pid=4711)
    world.settle()
    pulse.close()
    world.pass_time(12)
    assert world.killed == [4711]
    assert not world.restart_seen.is_set()
    world.pass_time(11)
    assert world.restart_seen.is_set()


def test_a_step_that_never_ends_is_noticed_though_the_process_lives(made: Callable[..., DyingWorld]):
    world = made()
    reader, pulse = beating()
    world.join(reader, pid=4711)
    world.settle()
    pulse.work(0.1)
    for _ in range(30):
        beats = reader.read().beats
        while reader.read().beats == beats:  # its thread goes on
            pass
        world.pass_time(0.5)
    assert world.killed == [4711]
    pulse.close()


def test_an_instance_that_dies_at_its_start_is_started_again_after_growing_pauses(made: Callable[..., DyingWorld]):
    world = made()
    world.join(starts=False)
    starts_s = []
    for death in range(6):
        world.restart_seen.clear()
        world.die()
        died_s = world.played.time_s
        while not world.restart_seen.is_set():
            trouble = world.instance_state().trouble
            assert "killed" in trouble
            if not world.restart_seen.is_set():
                assert "starts again in" in trouble
        starts_s.append(world.played.time_s - died_s)
        assert len(world.restarted) == death + 1
        world.join(starts=False)
    assert starts_s == pytest.approx([0, 1, 2, 4, 8, 16], abs=0.5)


def test_what_led_to_a_dead_instance_is_closed(made: Callable[..., DyingWorld]):
    world = made()
    before = None
    for _ in range(6):
        world.restart_seen.clear()
        reader, pulse = beating()
        instance = world.join(reader)
        world.submit(f"r{world.incarnation}")
        turn = instance.expect(m.RunTurn)
        instance.link.send(m.TurnOver(turn.turn_id, TurnEndReason.QUOTA, (), (turn.prefill[0].request_id,), False))
        instance.expect(m.RunTurn)
        world.die()
        for interrupted in turn.prefill:
            world.frontend.expect(m.Interrupted)
            world.frontend.link.send(m.Cancel(interrupted.request_id))
        assert world.frontend.expect(m.InstanceGone).instance_key == f"i0:{world.incarnation}"
        assert world.restart_seen.wait(20)
        pulse.close()
        instance.link.close()
        now = open_descriptors(), threading.active_count()
        before = before or now
        assert now == before


def test_a_frontend_that_leaves_takes_its_requests_along_and_leaves_nothing_open(made: Callable[..., DyingWorld]):
    world = made()
    instance = world.join()
    world.submit("first")
    turn = instance.expect(m.RunTurn)
    instance.link.send(m.SequenceFinished(turn.turn_id, "first"))
    instance.link.send(m.TurnOver(turn.turn_id, TurnEndReason.DRAINED, (), (), switched=True))
    world.settle()
    before = open_descriptors()
    second = world.attach("g")
    world.submit("a", frontend=second, frontend_id="g")
    turn = instance.expect(m.RunTurn)
    second.link.send(m.DetachFrontend("g"))
    assert instance.expect(m.Forget).request_ids == ("a",)
    instance.link.send(m.Forgotten(("a",), ()))
    instance.link.send(m.TurnOver(turn.turn_id, TurnEndReason.DRAINED, (), (), switched=False))
    assert instance.expect(m.DetachFrontend).frontend_id == "g"
    second.link.close()
    world.settle()
    assert open_descriptors() == before


@pytest.mark.parametrize("policy", ["slack", "aegaeon", "sllm"])
def test_a_model_that_failed_is_tried_again_and_serves(made: Callable[..., DyingWorld], tmp_path: Path, policy: str):
    file = tmp_path / "two.safetensors"
    world = made(policy=policy)
    kept = file.read_bytes()
    file.unlink()
    instance = world.join()
    world.submit("bad", "two")
    failed = world.frontend.expect(m.ModelState)
    assert (failed.model, failed.awaits_files) == ("two", False)
    assert failed.retry_s == world.played.time_s + 1
    assert world.frontend.expect(m.Rejected).retry_after_s == 1
    turn = instance.expect(m.RunTurn)
    assert instance.expect(m.Forget).request_ids == ("bad",)
    world.submit("early", "two")
    assert world.frontend.expect(m.Rejected).request_id == "early"
    file.write_bytes(kept)
    world.pass_time(1.5)  # not while the turn in which it failed is under way
    instance.link.send(m.Forgotten(("bad",), ()))
    instance.link.send(m.TurnOver(turn.turn_id, TurnEndReason.DRAINED, (), (), switched=False))
    world.settle()
    world.pass_time(1.5)
    assert world.frontend.expect(m.ModelState) == m.ModelState("two", None)
    world.submit("good", "two")
    again = instance.expect(m.RunTurn)
    assert [member.request_id for member in again.prefill] == ["good"]
    assert instance.expect(m.HostWeights).model == "two"


def test_a_model_that_fails_again_and_again_waits_longer_and_late_frontends_hear_of_it(
    made: Callable[..., DyingWorld],
):
    looks: list[float] = []
    world = made(
        examine=lambda failure, done: (
            looks.append(world.played.time_s),
            done(ModelProblem(failure.reason, failure.kind)),
        )
    )
    world.join()
    world.driver.wakeup.post(lambda: world.driver._model_failed("two", "no descriptor", FailureKind.TRANSIENT))
    world.settle()
    began_s = world.played.time_s
    world.pass_time(130, step_s=1.0)
    assert [look_s - began_s for look_s in looks] == [1, 3, 7, 15, 31, 63, 123]
    late = world.attach("late")
    assert late.expect(m.ModelState).failure == "no descriptor"


def test_weights_that_an_instance_refuses_for_a_moment_are_tried_again(made: Callable[..., DyingWorld]):
    world = made()
    instance = world.join()
    world.submit("a")
    turn = instance.expect(m.RunTurn)
    weights = instance.expect(m.HostWeights)
    instance.link.send(m.WeightsRefused("one", weights.lease_id, "too many open files", FailureKind.TRANSIENT))
    instance.link.send(m.TurnOver(turn.turn_id, TurnEndReason.FAILED, (), ("a",), switched=False))
    assert world.frontend.expect(m.Rejected).detail == "too many open files"
    world.settle()
    world.pass_time(1.5)
    world.submit("b")
    again = instance.expect(m.RunTurn)
    assert [member.request_id for member in again.prefill] == ["b"]
    assert instance.expect(m.HostWeights).lease_id != weights.lease_id
