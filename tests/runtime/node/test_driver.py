"""The driver's loop: real links, real weights, real ends of processes. What it decides is its core's."""

from __future__ import annotations

import gc
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from safetensors.torch import save_file

import quick_model_loader as qml
from aegaeon.core.event import TurnEndReason
from aegaeon.core.instance import InstanceSpec, Role
from aegaeon.runtime.node.driver import Driver
from aegaeon.runtime.node.host_weights import HostWeightCache
from aegaeon.runtime.node.instance_handle import InstanceHandle
from aegaeon.runtime.wire import messages as m
from aegaeon.runtime.wire.clock import MonotonicClock
from aegaeon.runtime.wire.link import create_link, link_over
from aegaeon.runtime.wire.pulse import PulseReader, create_pulse
from tests.worlds.core_world import MODELS, PROMPT, SLAB_BYTES, FailsOver, make_core, make_kv, members, submission

T = TypeVar("T")
ROUNDS = 400  # of the loop, each of which ends when something comes


class World:
    """A driver whose loop goes round while a test waits for something."""

    def __init__(self, folder: Path, **options: Any) -> None:
        paths = {name: folder / f"{name}.safetensors" for name in MODELS}
        for path in paths.values():
            save_file({"w": torch.full((1024,), 1.0)}, path)
        self.kv = make_kv(slabs=8)
        self.spec = InstanceSpec("i0", Role.MIXED, 8 * SLAB_BYTES, 1 << 20)
        self.restarted: list[InstanceSpec] = []
        self.driver = Driver(
            make_core(self.kv, **options),
            lambda post, fail: HostWeightCache(8 << 20, paths, post, fail),
            MonotonicClock(),
            self.restarted.append,
        )
        self.incarnation = -1
        self.frontend = self.attach("f")

    def attach(self, frontend_id: str) -> RingPeer:
        link, fds = create_link()
        self.driver.add_frontend(frontend_id, link)
        return RingPeer(self, fds)

    def join(self, pulse: PulseReader | None = None, pid: int = os.getpid()) -> RingPeer:
        self.incarnation += 1
        link, fds = create_link()
        self.driver.add_instance(InstanceHandle(self.spec, self.incarnation, link, pulse))
        peer = RingPeer(self, fds)
        peer.link.send(m.Started("i0", pid))
        return peer

    def await_restart(self) -> None:
        """Of the present incarnation, which has died."""
        for _ in range(ROUNDS):
            if len(self.restarted) > self.incarnation:
                return
            self.driver.go_on(0.05)
        raise AssertionError("no new process was asked for")

    def close(self) -> None:
        self.driver.stop()
        self.driver.run()
        self.kv.check_integrity()
        self.kv.close()


class RingPeer:
    """The other end of a driver's link; takes messages by type and keeps the rest in order."""

    def __init__(self, world: World, fds: list[int]) -> None:
        self.world = world
        self.link = link_over(fds)
        self.inbox: list[object] = []

    def expect(self, kind: type[T]) -> T:
        """The next message of a kind; those before it that are of other kinds stay."""
        for _ in range(ROUNDS):
            for index, message in enumerate(self.inbox):
                if isinstance(message, kind):
                    return self.inbox.pop(index)  # type: ignore[return-value]
            self.world.driver.go_on(0.05)
            self.inbox.extend(self.link.drain())
        raise AssertionError(f"no {kind.__name__}; got {self.inbox[:20]}")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()


def open_descriptors() -> int:
    """Of this process, without those of garbage that other tests left."""
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_request_gets_its_weights_and_its_turn_over_links(world: World):
    instance = world.join()
    world.frontend.link.send(submission("a"))
    assert world.frontend.expect(m.Accepted).request_id == "a"
    with qml.attach(instance.expect(m.HostWeights).handle) as entry:
        assert torch.equal(entry.torch("w"), torch.full((1024,), 1.0))
    turn = instance.expect(m.RunTurn)
    instance.link.send(m.SequenceFinished(turn.turn_id, m.Progress("a", (), 0)))
    instance.link.send(m.TurnOver(turn.turn_id, TurnEndReason.DRAINED, (), (), switched=True))
    world.frontend.link.send(submission("b"))
    assert set(members(instance.expect(m.RunTurn))) == {"b"}
    while not (state := world.frontend.expect(m.NodeState)).weights_cached:
        pass
    assert state.weights_cached == ("one",)
    assert state.weights_bytes > 0


def test_what_a_driver_says_before_it_ends_of_an_error_is_sent(tmp_path: Path):
    world = World(tmp_path, wrap=FailsOver)
    world.frontend.link.send(submission("bad"))
    with pytest.raises(ValueError, match="math domain error"):
        world.frontend.expect(m.Failed)
    (failed,) = (message for message in world.frontend.link.drain() if isinstance(message, m.Failed))
    assert failed.request_id == "bad"
    world.close()


def test_a_model_that_cannot_be_read_fails_its_requests(world: World, tmp_path: Path):
    (tmp_path / "two.safetensors").write_bytes(b"garbage")
    world.join()
    world.frontend.link.send(submission("bad", "two"))
    assert "two" in world.frontend.expect(m.Rejected).detail


@pytest.mark.parametrize("attached", [True, False])
def test_a_frontend_that_dies_without_a_word_is_noticed(world: World, attached: bool):
    instance = world.join()
    gone = world.attach("g")
    if attached:
        gone.link.send(m.AttachFrontend("g", "nowhere"))
    gone.link.send(submission("theirs", frontend_id="g"))
    instance.expect(m.RunTurn)
    gone.link.close()  # as the kernel does when a process ends
    assert instance.expect(m.DetachFrontend).frontend_id == "g"
    assert instance.expect(m.Forget).request_ids == ("theirs",)


def test_the_kernel_tells_of_a_processs_end_and_what_it_had_said_counts(world: World):
    process = subprocess.Popen(["sleep", "1000"])
    instance = world.join(pid=process.pid)
    world.frontend.link.send(submission("a"))
    turn = instance.expect(m.RunTurn)
    instance.link.send(m.Prefilled(turn.turn_id, m.Progress("a", (100,), len(PROMPT))))
    process.kill()
    process.wait()
    assert world.frontend.expect(m.InstanceGone).instance_key == "i0:0"
    world.await_restart()
    (member,) = members(world.join().expect(m.RunTurn)).values()
    assert member.state is not None
    assert member.state.kv_tokens == len(PROMPT)


def test_what_led_to_a_dead_instance_is_closed(world: World):
    before = None
    for _ in range(3):
        process = subprocess.Popen(["sleep", "1000"])
        instance = world.join(PulseReader(create_pulse()), process.pid)
        name = f"r{world.incarnation}"
        world.frontend.link.send(submission(name))
        instance.expect(m.HostWeights)  # whoever lends them has opened what it needs, once
        turn = instance.expect(m.RunTurn)
        instance.link.send(m.TurnOver(turn.turn_id, TurnEndReason.QUOTA, (), (name,), switched=False))  # it ran well
        instance.expect(m.RunTurn)
        process.kill()
        process.wait()
        assert world.frontend.expect(m.Interrupted).request_id == name
        world.frontend.link.send(m.Cancel(name))
        assert world.frontend.expect(m.InstanceGone).instance_key == f"i0:{world.incarnation}"
        world.await_restart()
        instance.link.close()
        now = open_descriptors()
        before = before or now
        assert now == before


def test_a_frontend_that_leaves_leaves_nothing_open(world: World):
    instance = world.join()
    instance.link.flush()
    world.frontend.expect(m.NodeState)
    before = open_descriptors()
    second = world.attach("g")
    second.link.send(m.AttachFrontend("g", "nowhere"))
    assert instance.expect(m.AttachFrontend).frontend_id == "g"
    second.link.send(m.DetachFrontend("g"))
    assert instance.expect(m.DetachFrontend).frontend_id == "g"
    second.link.close()
    assert open_descriptors() == before


def test_stopping_shuts_instances_down(tmp_path: Path):
    world = World(tmp_path)
    instance = world.join()
    world.close()
    assert m.Shutdown() in list(instance.link.drain())
