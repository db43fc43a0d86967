"""The driver between a frontend and instances that the test plays: same links, same messages, no process."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from safetensors.torch import save_file

import quick_model_loader as qml
from aegaeon.core.command import Command, FetchWeights, LoadWeights
from aegaeon.core.cost import ProfiledCosts
from aegaeon.core.event import Event, RequestArrived, TurnEnded, TurnEndReason, WeightsFetched
from aegaeon.core.generation import FinishReason
from aegaeon.core.instance import InstanceSpec, Role
from aegaeon.core.kv_shape import KvShape, LayerKv
from aegaeon.core.model import ModelSpec
from aegaeon.core.profile import LatencyProfile
from aegaeon.core.request import Request
from aegaeon.core.sampling import SamplingParams
from aegaeon.runtime.node.driver import Driver
from aegaeon.runtime.node.host_weights import HostWeightCache
from aegaeon.runtime.node.instance_handle import InstanceHandle
from aegaeon.runtime.node.node_kv import NodeKv
from aegaeon.runtime.wire import messages as m
from aegaeon.runtime.wire.clock import Clock, MonotonicClock
from aegaeon.runtime.wire.link import create_link, link_over
from aegaeon.runtime.wire.pulse import PulseReader
from aegaeon.scheduler.limits import PoolLimits
from aegaeon.scheduler.policies.registry import make_scheduler
from aegaeon.scheduler.scheduler import Scheduler

SHAPE = KvShape((LayerKv(2, 8, 8),) * 2, element_bytes=4)
SLAB_BYTES = 16 * SHAPE.block_bytes
T = TypeVar("T")
PROMPT = tuple(range(1, 21))
EOS, STOP = 9, 8


class Peer:
    """The other end of a driver's link; takes messages by type and keeps the rest in order."""

    def __init__(self, fds: list[int]) -> None:
        self.link = link_over(fds)
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
        self,
        folder: Path,
        slabs: int = 8,
        wrap: Callable[[Scheduler], Scheduler] = lambda inner: inner,
        *,
        policy: str = "aegaeon",
        clock: Clock | None = None,
        **options: Any,
    ) -> None:
        self.clock = clock or MonotonicClock()
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
            wrap(make_scheduler(policy, tuple(specs.values()), costs, limits)),
            self.kv,
            lambda post, fail: HostWeightCache(8 << 20, paths, post, fail),
            self.clock,
            self._restart,
            dict.fromkeys(specs, (EOS,)),
            **options,
        )
        self.incarnation = -1
        self.thread = threading.Thread(target=self.driver.run)
        self.thread.start()
        self.frontend = self.attach("f")

    def attach(self, frontend_id: str) -> Peer:
        link, fds = create_link()
        self.driver.wakeup.post(lambda: self.driver.add_frontend(frontend_id, link))
        return Peer(fds)

    def _restart(self, spec: InstanceSpec) -> None:
        self.restarted.append(spec)
        self.restart_seen.set()

    def join(self, pulse: PulseReader | None = None, pid: int = os.getpid(), *, starts: bool = True) -> Peer:
        self.incarnation += 1
        link, fds = create_link()
        handle = InstanceHandle(self.spec, self.incarnation, link, pulse)
        self.driver.wakeup.post(lambda: self.driver.add_instance(handle))
        peer = Peer(fds)
        if starts:
            peer.link.send(m.Started(self.spec.instance_id, pid))
        return peer

    def submit(
        self,
        request_id: str,
        model: str = "one",
        max_new_tokens: int = 50,
        generated_ids: tuple[int, ...] = (),
        frontend: Peer | None = None,
        frontend_id: str = "f",
    ) -> None:
        request = Request(request_id, model, self.clock.now_s(), len(PROMPT), max_new_tokens)
        sampling = SamplingParams(max_new_tokens=max_new_tokens, temperature=0.0, seed=0, stop_token_ids=(STOP,))
        submit = m.Submit(request, frontend_id, PROMPT, sampling, generated_ids)
        (frontend or self.frontend).link.send(submit)

    def kill(self, last_act: Callable[[], None] = lambda: None) -> None:
        """The instance dies; the driver hears of it, before it reads what came of the last act."""
        key = f"i0:{self.incarnation}"
        self.restart_seen.clear()

        def die() -> None:
            last_act()
            self.driver.instance_died(key, "killed")

        self.driver.wakeup.post(die)

    def resume(self, generated_ids: dict[str, tuple[int, ...]]) -> None:
        """The frontend says what the clients have of all that was interrupted; a new process is asked for."""
        for _ in generated_ids:
            request_id = self.frontend.expect(m.Interrupted).request_id
            self.frontend.link.send(m.Resume(request_id, generated_ids[request_id]))
        assert self.restart_seen.wait(20)

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


class FailsOver:
    """A policy with a bug: it cannot take request "bad"."""

    def __init__(self, inner: Scheduler) -> None:
        self._inner = inner

    def handle(self, event: Event, now_s: float) -> list[Command]:
        if isinstance(event, RequestArrived) and event.request.request_id == "bad":
            raise ValueError("math domain error")
        return self._inner.handle(event, now_s)


def test_a_driver_that_ends_over_a_request_fails_that_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ended: list[object] = []
    monkeypatch.setattr("threading.excepthook", lambda args: ended.append(args.exc_value))
    world = World(tmp_path, wrap=FailsOver)
    world.submit("good")
    world.submit("bad")
    assert world.frontend.expect(m.Accepted).request_id == "good"
    failed = world.frontend.expect(m.Failed)
    assert failed.request_id == "bad"
    assert "ValueError: math domain error" in failed.reason
    world.close()
    assert [str(error) for error in ended] == ["math domain error"]
    assert not any(isinstance(message, m.Accepted | m.Failed) for message in world.frontend.link.drain())


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


# --- what a request goes on from --------------------------------------------------------------------------------------


def members(turn: m.RunTurn) -> dict[str, m.Member]:
    return {member.request_id: member for member in (*turn.prefill, *turn.decode)}


@pytest.mark.parametrize(
    ("clients", "kv_tokens"),
    [
        ((100,), len(PROMPT)),  # shorter: one token must be fed for the next to be chosen
        ((100, 7, 7, 7), len(PROMPT) + 1),  # KV of other tokens does not count
    ],
)
def test_a_request_goes_on_from_what_its_client_has_and_not_from_what_was_reported(
    world: World, clients: tuple[int, ...], kv_tokens: int
):
    instance = world.join()
    world.submit("a")
    prefill(instance)
    decode = instance.expect(m.RunTurn)
    progress = m.Progress("a", (101, 102, 103), len(PROMPT) + 3)
    instance.link.send(m.TurnOver(decode.turn_id, TurnEndReason.QUOTA, (progress,), (), switched=False))
    instance.expect(m.RunTurn)
    world.kill()
    world.resume({"a": clients})
    state = members(world.join().expect(m.RunTurn))["a"].state
    assert state is not None
    assert (state.token_ids, state.kv_tokens) == ((*PROMPT, *clients), kv_tokens)


@pytest.mark.parametrize(
    ("generated_ids", "reason"),
    [((100, 101), FinishReason.LENGTH), ((100, EOS), FinishReason.STOP), ((STOP,), FinishReason.STOP)],
)
def test_a_request_that_has_all_its_tokens_is_finished_and_not_run_again(
    world: World, generated_ids: tuple[int, ...], reason: FinishReason
):
    instance = world.join()
    world.submit("a", max_new_tokens=2)
    prefill(instance)
    instance.expect(m.RunTurn)
    world.kill()
    world.resume({"a": generated_ids})
    assert world.frontend.expect(m.Finished) == m.Finished("a", reason, len(generated_ids))
    world.submit("b")
    assert set(members(world.join().expect(m.RunTurn))) == {"b"}


def test_what_another_driver_began_goes_on_or_is_over(world: World):
    world.submit("whole", max_new_tokens=2, generated_ids=(100, 101))
    assert world.frontend.expect(m.Finished) == m.Finished("whole", FinishReason.LENGTH, 2)
    world.submit("begun", max_new_tokens=5, generated_ids=(100, 101))
    state = members(world.join().expect(m.RunTurn))["begun"].state
    assert state is not None
    assert (state.token_ids, state.prompt_tokens, state.kv_tokens) == ((*PROMPT, 100, 101), len(PROMPT), 0)


def test_a_request_that_lost_its_kv_as_its_instance_died_waits_for_what_its_client_has(tmp_path: Path):
    world = World(tmp_path, slabs=1)
    instance = world.join()
    world.submit("a", max_new_tokens=2)
    prefill(instance)
    decode = instance.expect(m.RunTurn)
    world.submit("b")
    instance.expect(m.JoinTurn)
    instance.link.send(m.Prefilled(decode.turn_id, m.Progress("b", (7,), len(PROMPT))))
    instance.link.send(m.NeedBlocks(decode.turn_id, "a", 15 * 16))
    assert instance.expect(m.Forget).request_ids == ("b",)
    world.kill()
    world.resume({"a": (100, 101), "b": (7, 11, 12)})
    state = members(world.join().expect(m.RunTurn))["b"].state
    assert state is not None
    assert (state.token_ids, state.kv_tokens) == ((*PROMPT, 7, 11, 12), 0)
    world.close()


@pytest.mark.parametrize("prefilled_first", [True, False])
def test_a_request_whose_forgetting_was_under_way_at_the_death_is_not_waited_for(tmp_path: Path, prefilled_first: bool):
    world = World(tmp_path)
    instance = world.join()
    world.submit("a")
    turn = instance.expect(m.RunTurn)
    world.frontend.link.send(m.Cancel("a"))
    instance.expect(m.Forget)
    if prefilled_first:
        instance.link.send(m.Prefilled(turn.turn_id, m.Progress("a", (100,), len(PROMPT))))
    world.kill()
    assert world.restart_seen.wait(20)
    world.join()
    world.close()
    assert world.kv.used_bytes == 0


def test_a_frontend_that_goes_takes_its_requests_with_it_also_those_it_owes_an_answer_for(world: World):
    instance = world.join()
    link, fds = create_link()
    world.driver.wakeup.post(lambda: world.driver.add_frontend("g", link))
    gone = Peer(fds)
    gone.link.send(m.AttachFrontend("g", "nowhere"))
    request = Request("theirs", "one", MonotonicClock().now_s(), len(PROMPT), 50)
    gone.link.send(m.Submit(request, "g", PROMPT, SamplingParams(temperature=0.0, seed=0)))
    prefill(instance)
    instance.expect(m.RunTurn)
    world.kill()
    gone.expect(m.Interrupted)
    gone.link.send(m.DetachFrontend("g"))
    assert world.restart_seen.wait(20)
    world.join()
    world.close()
    assert world.kv.used_bytes == 0


@pytest.mark.parametrize("attached", [True, False])
def test_a_frontend_that_dies_without_a_word_is_noticed(world: World, attached: bool):
    instance = world.join()
    link, fds = create_link()
    world.driver.wakeup.post(lambda: world.driver.add_frontend("g", link))
    gone = Peer(fds)
    if attached:
        gone.link.send(m.AttachFrontend("g", "nowhere"))
    request = Request("theirs", "one", MonotonicClock().now_s(), len(PROMPT), 50)
    gone.link.send(m.Submit(request, "g", PROMPT, SamplingParams(temperature=0.0, seed=0)))
    instance.expect(m.RunTurn)
    gone.link.close()  # as the kernel does when a process ends
    assert instance.expect(m.DetachFrontend).frontend_id == "g"
    assert instance.expect(m.Forget).request_ids == ("theirs",)


# --- who is suspected -------------------------------------------------------------------------------------------------


def dies_in_a_step(world: World, instance: Peer, turn: m.RunTurn, *attempt: str, have: int = 0) -> Peer:
    """The instance dies in a step of these requests, or, where there are none, as it binds the model. The next one."""
    instance.link.send(m.Attempt(turn.turn_id, attempt))
    world.kill()
    world.resume({name: tuple(range(100, 100 + have)) for name in members(turn)})
    return world.join()


def test_a_request_that_two_instances_died_of_runs_alone_and_then_fails_and_its_model_goes_on(world: World):
    for name in ("a", "poison", "b"):
        world.submit(name)
    instance = world.join()
    for _ in range(2):
        turn = instance.expect(m.RunTurn)
        assert {"a", "poison", "b"} == set(members(turn))
        instance = dies_in_a_step(world, instance, turn, "poison")
    alone = instance.expect(m.RunTurn)
    while set(members(alone)) != {"poison"}:  # the others may go first, but not with it
        assert "poison" not in members(alone)
        instance.link.send(m.TurnOver(alone.turn_id, TurnEndReason.QUOTA, (), tuple(members(alone)), switched=False))
        alone = instance.expect(m.RunTurn)
    assert alone.quota_s is not None  # the others do not wait for its end
    assert members(alone)["poison"].state is not None
    instance = dies_in_a_step(world, instance, alone, "poison")
    failed = world.frontend.expect(m.Failed)
    assert failed.request_id == "poison"
    assert "3 instances died" in failed.reason
    assert "killed" in failed.reason
    assert set(members(instance.expect(m.RunTurn))) == {"a", "b"}
    world.submit("c")
    assert [world.frontend.expect(m.Accepted).request_id for _ in range(4)][-1] == "c"
    assert not [x for x in world.frontend.inbox if isinstance(x, m.ModelState)]


def test_a_suspect_does_not_join_a_turn_of_others_nor_they_its_own(world: World):
    instance = world.join()
    world.submit("suspect")
    for _ in range(2):
        instance = dies_in_a_step(world, instance, instance.expect(m.RunTurn), "suspect")
    alone = instance.expect(m.RunTurn)
    world.submit("late")
    world.frontend.expect(m.Accepted)
    progress = m.Progress("suspect", tuple(range(100, 110)), len(PROMPT) + 9)
    instance.link.send(m.Prefilled(alone.turn_id, progress))  # it got somewhere: it is not suspected any more
    instance.link.send(m.TurnOver(alone.turn_id, TurnEndReason.QUOTA, (m.Progress("suspect", (), 29),), (), False))
    later = instance.expect(m.RunTurn)
    assert not [x for x in instance.inbox if isinstance(x, m.JoinTurn) and x.turn_id == alone.turn_id]
    seen = set(members(later))
    while seen != {"suspect", "late"}:
        seen |= {member.request_id for member in instance.expect(m.JoinTurn).prefill}


def test_kills_from_outside_speak_neither_against_requests_that_get_on_nor_against_their_model(world: World):
    instance = world.join()
    world.submit("a")
    for kill in range(6):
        turn = instance.expect(m.RunTurn)
        instance = dies_in_a_step(world, instance, turn, "a", have=8 * kill)
    assert set(members(instance.expect(m.RunTurn))) == {"a"}
    assert not [x for x in world.frontend.inbox if isinstance(x, m.ModelState | m.Failed)]


def test_who_was_in_the_turn_but_not_in_the_step_is_not_suspected(world: World):
    for name in ("a", "b"):
        world.submit(name)
    instance = world.join()
    for _ in range(2):
        instance = dies_in_a_step(world, instance, instance.expect(m.RunTurn), "a")
    turns = [instance.expect(m.RunTurn)]
    assert len(members(turns[0])) == 1
    instance = dies_in_a_step(world, instance, turns[0], *members(turns[0]))
    assert "b" in members(instance.expect(m.RunTurn))


def test_a_model_that_instances_die_of_as_they_bind_it_is_failed_and_no_other(world: World):
    world.submit("a")
    instance = world.join()
    for _ in range(2):
        instance = dies_in_a_step(world, instance, instance.expect(m.RunTurn))
    instance.link.send(m.Attempt(instance.expect(m.RunTurn).turn_id, ()))
    world.kill()
    assert world.frontend.expect(m.ModelState).model == "one"
    assert world.frontend.expect(m.Rejected).request_id == "a"
    world.submit("other", "two")
    assert world.join().expect(m.RunTurn).model == "two"


def test_a_turn_that_never_reached_its_instance_speaks_against_nobody(world: World):
    """What ended before the death is read after it, and the scheduler gives the dead one a turn."""
    world.submit("a")
    instance = world.join()
    for _ in range(4):
        turn = instance.expect(m.RunTurn)
        over = m.TurnOver(turn.turn_id, TurnEndReason.QUOTA, (), tuple(members(turn)), switched=False)
        world.kill(lambda over=over, instance=instance: instance.link.send(over))
        world.resume({"a": ()})
        instance = world.join()
    world.submit("b")
    seen: set[str] = set(members(instance.expect(m.RunTurn)))
    while seen != {"a", "b"}:
        seen |= {member.request_id for member in instance.expect(m.JoinTurn).prefill}
