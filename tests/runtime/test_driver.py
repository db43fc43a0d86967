"""The driver between a frontend and instances that the test plays: same links, same messages, no process."""

from __future__ import annotations

import select
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from safetensors.torch import save_file

import quick_model_loader as qml
from aegaeon.core.command import Command, FetchWeights, LoadWeights
from aegaeon.core.cost import ProfiledCosts
from aegaeon.core.event import Event, RequestArrived, TurnEnded, TurnEndReason, WeightsFetched
from aegaeon.core.instance import InstanceSpec, Role
from aegaeon.core.kv_shape import KvShape, LayerKv
from aegaeon.core.model import ModelSpec
from aegaeon.core.profile import LatencyProfile
from aegaeon.core.request import Request
from aegaeon.core.sampling import SamplingParams
from aegaeon.runtime import messages as m
from aegaeon.runtime.clock import MonotonicClock
from aegaeon.runtime.driver import Driver
from aegaeon.runtime.host_weights import HostWeightCache
from aegaeon.runtime.instance_handle import InstanceHandle
from aegaeon.runtime.link import Link, create_link
from aegaeon.runtime.node_kv import NodeKv
from aegaeon.runtime.ring import RingReader, RingWriter, duplicate_fds
from aegaeon.scheduler.limits import PoolLimits
from aegaeon.scheduler.registry import make_scheduler
from aegaeon.scheduler.scheduler import Scheduler

SHAPE = KvShape((LayerKv(2, 8, 8),) * 2, element_bytes=4)
SLAB_BYTES = 16 * SHAPE.block_bytes
T = TypeVar("T")
PROMPT = tuple(range(1, 21))


class Peer:
    """The other end of a driver's link; takes messages by type and keeps the rest in order."""

    def __init__(self, fds: list[int]) -> None:
        fds = duplicate_fds(fds)
        self.link = Link(RingReader(fds[:3]), RingWriter(fds[3:]))
        self.inbox: list[object] = []

    def expect(self, kind: type[T], timeout_s: float = 20.0) -> T:
        """The next message of a kind; those before it that are of other kinds stay."""
        while True:
            for index, message in enumerate(self.inbox):
                if isinstance(message, kind):
                    return self.inbox.pop(index)
            poll = select.poll()
            poll.register(self.link.data_fd, select.POLLIN)
            assert poll.poll(timeout_s * 1000), f"no {kind.__name__}; got {self.inbox}"
            self.inbox.extend(self.link.drain())


class World:
    """A driver on its own thread, with two models, one mixed instance per incarnation, and a frontend."""

    def __init__(
        self, folder: Path, slabs: int = 8, wrap: Callable[[Scheduler], Scheduler] = lambda inner: inner
    ) -> None:
        paths, specs = {}, {}
        for name in ("one", "two"):
            paths[name] = folder / f"{name}.safetensors"
            save_file({"w": torch.full((1024,), 1.0)}, paths[name])
            specs[name] = ModelSpec(name, 8192, SHAPE, 4096)
        profile = LatencyProfile(0.01, 1e-5, 0.0, 0.01, 0.0, 0.0)
        costs = ProfiledCosts(specs, dict.fromkeys(specs, profile), 1e9, 1e9)
        limits = PoolLimits(slabs * SLAB_BYTES, SLAB_BYTES)
        self.kv = NodeKv(slabs * SLAB_BYTES, SLAB_BYTES, [SHAPE])
        self.spec = InstanceSpec("i0", Role.MIXED, slabs * SLAB_BYTES, 1 << 20)
        self.restarted: list[InstanceSpec] = []
        self.restart_seen = threading.Event()
        self.driver = Driver(
            specs,
            wrap(make_scheduler("aegaeon", tuple(specs.values()), costs, limits)),
            self.kv,
            lambda post, fail: HostWeightCache(8 << 20, paths, post, fail),
            MonotonicClock(),
            self._restart,
        )
        link, fds = create_link()
        self.driver.add_frontend("f", link)
        self.frontend = Peer(fds)
        self.incarnation = -1
        self.thread = threading.Thread(target=self.driver.run)
        self.thread.start()

    def _restart(self, spec: InstanceSpec) -> None:
        self.restarted.append(spec)
        self.restart_seen.set()

    def join(self) -> Peer:
        self.incarnation += 1
        link, fds = create_link()
        handle = InstanceHandle(self.spec, self.incarnation, link)
        self.driver.wakeup.post(lambda: self.driver.add_instance(handle))
        peer = Peer(fds)
        peer.link.send(m.Started(self.spec.instance_id, 1))
        return peer

    def submit(self, request_id: str, model: str = "one", max_new_tokens: int = 50) -> None:
        request = Request(request_id, model, MonotonicClock().now_s(), len(PROMPT), max_new_tokens)
        sampling = SamplingParams(max_new_tokens=max_new_tokens, temperature=0.0, seed=0)
        self.frontend.link.send(m.Submit(request, "f", PROMPT, sampling))

    def close(self) -> None:
        self.driver.stop()
        self.thread.join(20)
        assert not self.thread.is_alive()
        self.kv.check_integrity()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()


def prefill(instance: Peer, token_id: int = 100) -> tuple[m.RunTurn, m.Member]:
    """Play a prefill turn of one request to its end."""
    turn = instance.expect(m.RunTurn)
    (member,) = turn.prefill
    progress = m.Progress(member.request_id, (token_id,), len(PROMPT))
    instance.link.send(m.Prefilled(turn.turn_id, progress))
    instance.link.send(m.TurnOver(turn.turn_id, TurnEndReason.DRAINED, (), (), switched=True))
    return turn, member


def test_a_request_runs_from_submission_to_its_end_and_frees_its_blocks(world: World):
    instance = world.join()
    world.submit("a")
    assert world.frontend.expect(m.Accepted).request_id == "a"
    weights = instance.expect(m.HostWeights)
    with qml.attach(weights.handle) as entry:
        assert torch.equal(entry.torch("w"), torch.full((1024,), 1.0))
    turn, member = prefill(instance)
    assert member.state is not None
    assert member.state.token_ids == PROMPT
    assert len(member.blocks) * SHAPE.block_tokens >= len(PROMPT)
    decode = instance.expect(m.RunTurn)
    assert decode.turn_id != turn.turn_id
    assert [(x.request_id, x.state) for x in decode.decode] == [("a", None)]  # the instance has its state already
    instance.link.send(m.SequenceFinished(decode.turn_id, "a"))
    instance.link.send(m.TurnOver(decode.turn_id, TurnEndReason.DRAINED, (), (), switched=False))
    world.submit("b")
    instance.expect(m.RunTurn)
    world.close()
    assert world.kv.used_bytes == SHAPE.blocks_for(len(PROMPT) + SHAPE.block_tokens) * SHAPE.block_bytes  # b's alone


class BringsKvIn:
    """A policy that answers the end of a turn by quota with bringing in what request "a" needs, ahead of its turn."""

    def __init__(self, inner: Scheduler) -> None:
        self._inner = inner

    def handle(self, event: Event, now_s: float) -> list[Command]:
        if isinstance(event, TurnEnded) and event.reason is TurnEndReason.QUOTA:
            return [LoadWeights("i0", "one", ("a", "gone"))]
        return self._inner.handle(event, now_s)


def test_kv_is_brought_in_ahead_of_a_turn_as_a_load_asks(tmp_path: Path):
    world = World(tmp_path, wrap=BringsKvIn)
    instance = world.join()
    world.submit("a")
    prefill(instance)
    decode = instance.expect(m.RunTurn)
    progress = m.Progress("a", (101,), len(PROMPT) + 1)
    instance.link.send(m.TurnOver(decode.turn_id, TurnEndReason.QUOTA, (progress,), (), switched=False))
    fetch = instance.expect(m.FetchKv)
    assert fetch.model == "one"
    assert [(member.request_id, member.state) for member in fetch.members] == [("a", None)]
    assert len(fetch.members[0].blocks) * SHAPE.block_tokens > len(PROMPT)
    world.close()


class FetchesFirst:
    """A policy that has "two" read before it hears of a request, then "one" in its place."""

    def __init__(self, inner: Scheduler) -> None:
        self._inner = inner
        self._arrived: Event | None = None

    def handle(self, event: Event, now_s: float) -> list[Command]:
        match event:
            case RequestArrived():
                self._arrived = event
                return [FetchWeights("two")]
            case WeightsFetched("two"):
                return [FetchWeights("one", ("two",))]
            case WeightsFetched("one"):
                assert self._arrived is not None
                return self._inner.handle(self._arrived, now_s)
            case _:
                return self._inner.handle(event, now_s)


def test_a_model_is_read_into_host_memory_in_place_of_another(tmp_path: Path):
    world = World(tmp_path, wrap=FetchesFirst)
    instance = world.join()
    world.submit("a")
    assert instance.expect(m.RunTurn).model == "one"
    assert world.driver.weights.cached == ("one",)
    world.close()


def test_blocks_are_granted_while_a_turn_runs(world: World):
    instance = world.join()
    world.submit("a")
    prefill(instance)
    decode = instance.expect(m.RunTurn)
    (member,) = decode.decode
    instance.link.send(m.NeedBlocks(decode.turn_id, "a", 200))
    grant = instance.expect(m.GrantBlocks)
    assert (len(member.blocks) + len(grant.blocks)) * SHAPE.block_tokens >= 200
    assert not set(member.blocks) & set(grant.blocks)


def test_a_cancelled_request_leaves_its_turn_before_its_blocks_are_freed(world: World):
    instance = world.join()
    world.submit("a")
    prefill(instance)
    instance.expect(m.RunTurn)
    world.frontend.link.send(m.Cancel("a"))
    assert instance.expect(m.Forget).request_ids == ("a",)
    assert world.kv.used_bytes > 0  # the instance may still be writing
    instance.link.send(m.Forgotten(("a",), (m.Progress("a", (101, 102), 22),)))
    instance.link.send(m.TurnOver(2, TurnEndReason.DRAINED, (), (), switched=False))
    world.submit("b")
    (member,) = instance.expect(m.RunTurn).prefill
    world.close()
    assert world.kv.used_bytes == len(member.blocks) * SHAPE.block_bytes


def test_after_a_crash_a_request_goes_on_where_its_client_is(world: World):
    instance = world.join()
    world.submit("a")
    prefill(instance)
    instance.expect(m.RunTurn)
    world.driver.wakeup.post(lambda: world.driver.instance_died("i0:0", "killed"))
    asked = world.frontend.expect(m.Interrupted)
    assert (asked.request_id, asked.instance_id) == ("a", "i0:0")
    world.frontend.link.send(m.Resume("a", (100, 101, 102, 103)))
    assert world.restart_seen.wait(20)
    again = world.join().expect(m.RunTurn)
    (member,) = (*again.prefill, *again.decode)
    assert member.state is not None
    assert member.state.token_ids == (*PROMPT, 100, 101, 102, 103)
    assert member.state.kv_tokens == len(PROMPT)  # what was saved at the last hand-over is not computed again


def test_a_client_that_is_gone_when_its_instance_dies_costs_nothing(world: World):
    instance = world.join()
    world.submit("a")
    prefill(instance)
    instance.expect(m.RunTurn)
    world.driver.wakeup.post(lambda: world.driver.instance_died("i0:0", "killed"))
    world.frontend.expect(m.Interrupted)
    world.frontend.link.send(m.Cancel("a"))
    assert world.restart_seen.wait(20)
    world.join()
    world.close()
    assert world.kv.used_bytes == 0


def test_a_model_that_cannot_be_read_fails_its_requests_and_no_others(world: World, tmp_path: Path):
    (tmp_path / "two.safetensors").write_bytes(b"garbage")
    instance = world.join()
    world.submit("bad", "two")
    rejected = world.frontend.expect(m.Rejected)
    assert rejected.request_id == "bad"
    assert "two" in rejected.detail
    assert world.frontend.expect(m.ModelState).model == "two"
    turn = instance.expect(m.RunTurn)
    assert instance.expect(m.Forget).request_ids == ("bad",)
    instance.link.send(m.Forgotten(("bad",), ()))
    instance.link.send(m.TurnOver(turn.turn_id, TurnEndReason.DRAINED, (), (), switched=False))
    world.submit("good", "one")
    assert instance.expect(m.RunTurn).model == "one"


def test_when_blocks_run_out_the_latest_request_makes_room_and_is_computed_again(tmp_path: Path):
    world = World(tmp_path, slabs=1)  # 16 blocks of 16 tokens
    instance = world.join()
    world.submit("a")
    prefill(instance)
    decode = instance.expect(m.RunTurn)
    world.submit("b")
    (joined,) = instance.expect(m.JoinTurn).prefill  # the same model: it joins the running turn
    instance.link.send(m.Prefilled(decode.turn_id, m.Progress(joined.request_id, (7,), len(PROMPT))))
    instance.link.send(m.NeedBlocks(decode.turn_id, "a", 15 * 16))
    assert instance.expect(m.Forget).request_ids == ("b",)
    instance.link.send(m.Forgotten(("b",), (m.Progress("b", (8,), len(PROMPT) + 1),)))
    assert len(instance.expect(m.GrantBlocks).blocks) >= 12  # what "a" waited for
    instance.link.send(m.SequenceFinished(decode.turn_id, "a"))
    instance.link.send(m.TurnOver(decode.turn_id, TurnEndReason.DRAINED, (), (), switched=False))
    (again,) = instance.expect(m.RunTurn).prefill
    assert again.state is not None
    assert again.state.token_ids == (*PROMPT, 7, 8)
    assert again.state.kv_tokens == 0
    world.close()
