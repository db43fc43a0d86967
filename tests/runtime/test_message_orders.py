"""Rings have no order among each other, and peers die between any two messages: every answer ends, and is right."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aegaeon.core.command import RejectReason
from aegaeon.core.generation import FinishReason, Generation, GenerationError, GenerationRequest, TokenPrompt
from aegaeon.core.model import ModelSpec
from aegaeon.core.sampling import BeamParams
from aegaeon.runtime.frontend.frontend import PoolFrontend
from aegaeon.runtime.frontend.served_model import ServedModel
from aegaeon.runtime.instance.ordered_reports import OrderedReports
from aegaeon.runtime.wire import messages as m
from tests.worlds.message_world import (
    EOS,
    LAYOUTS,
    MODELS,
    SHAPE,
    VOCABULARY,
    Clock,
    End,
    MessageWorld,
    Peer,
    Ring,
    Sinks,
    Words,
    answer,
    collect,
    request,
)
from tests.worlds.played_disk import Files

Action = tuple[str, int]

READS = [
    *["instance_goes_on"] * 12,
    *["driver_reads"] * 8,
    *["frontend_reads_driver"] * 2,
    *["frontend_reads_instance"] * 2,
    "frontend_reads_gateway",
]
FAULTS = ["light_fuse", "kill", "death_is_noticed", "death_is_noticed", "leave"]
DISK = [*["disk_goes_on"] * 6, "disk_is_full", "file_is_damaged"]
SLOWNESS = ["ring_is_full", "ring_has_room", "writer_is_slow", "writers_are_fast"]
ACTIONS = st.lists(
    st.tuples(st.sampled_from([*["ask"] * 3, *READS, *FAULTS, *DISK, *SLOWNESS]), st.integers(0, 9999)),
    min_size=40,
    max_size=150,
)
MAX_DEATHS = 2  # of what a third makes of a request, other tests speak


def asked_for(number: int) -> dict[str, Any]:
    """All the ways to end: by the limit, at once, by an end token, by a stop token, by a stop string; and searches."""
    return [
        {"max_new_tokens": 1},
        {"max_new_tokens": 2, "ignore_eos": True},
        {"max_new_tokens": 40},
        {"max_new_tokens": 30, "stop": ("<5", "7><")},
        {"max_new_tokens": 30, "stop_token_ids": tuple(range(10, 30)), "min_new_tokens": 3},
        {"max_new_tokens": 25, "ignore_eos": True},
        {"max_new_tokens": 24, "beams": BeamParams(4, 2)},
        {"max_new_tokens": 40, "ignore_eos": True, "beams": BeamParams(3, 3, early_stopping=True)},
    ][number % 8]


async def until(client: asyncio.Task[Any], true: Callable[[], bool]) -> None:
    """Wait for what a client is about to do: its prompt is tokenized by another thread."""
    while not true():
        assert not client.done(), client
        await asyncio.sleep(0)


class Play:
    """Turns numbers into things that happen."""

    def __init__(self, world: MessageWorld) -> None:
        self.world = world
        self.clients: dict[str, tuple[GenerationRequest, asyncio.Task[Any]]] = {}
        self.generations: dict[str, Generation] = {}
        self.deaths = 0

    async def act(self, kind: str, number: int) -> None:
        if kind == "ask":
            await self.ask(number)
        elif kind == "leave":
            self.leave(number)
        elif kind in ("kill", "light_fuse"):
            self.deaths += 1
            if self.deaths <= MAX_DEATHS:
                getattr(self.world, kind)(number)
        else:
            getattr(self.world, kind)(number)
        await self.world.breathe()

    async def ask(self, number: int) -> None:
        name = f"r{len(self.clients)}"
        asked = request(name, MODELS[number % 2], range(3, 8 + number % 40), **asked_for(number // 2))
        first = None
        if self.generations and number % 5 < 3:
            before = list(self.generations)[number % len(self.generations)]
            asked, first = self.another_choice(asked, before) if number % 5 else (self.next_turn(asked, before), None)
        coming = collect(self.world.frontend, asked, first, lambda one: self.generations.update({name: one}))
        self.clients[name] = asked, asyncio.create_task(coming)
        await until(self.clients[name][1], lambda: name in self.world.frontend.request_ids)

    def another_choice(self, asked: GenerationRequest, before: str) -> tuple[GenerationRequest, Generation]:
        """The same prompt again."""
        earlier = self.clients[before][0]
        return replace(asked, model=earlier.model, prompt=earlier.prompt), self.generations[before]

    def next_turn(self, asked: GenerationRequest, before: str) -> GenerationRequest:
        """The prompt and the answer of an earlier one, and some more."""
        earlier = self.clients[before][0]
        assert isinstance(earlier.prompt, TokenPrompt)
        ids = (*earlier.prompt.token_ids, *answer(earlier)[0], 5, 6)
        return replace(asked, model=earlier.model, prompt=TokenPrompt(ids[:400]))

    def leave(self, number: int) -> None:
        if self.clients:
            self.clients[f"r{number % len(self.clients)}"][1].cancel()

    async def finish(self) -> None:
        await self.world.settle()
        for asked, task in self.clients.values():
            assert task.done(), f"{asked.request_id} hangs"
            if not task.cancelled():
                assert task.result() == answer(asked), asked
        self.world.check_books()
        self.world.close()


async def played(policy: str, far: bool, slabs: int, actions: list[Action]) -> None:
    play = Play(MessageWorld(policy, far, slabs))
    for kind, number in actions:
        await play.act(kind, number)
    await play.finish()


@pytest.mark.parametrize("policy", list(LAYOUTS))
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(actions=ACTIONS, far=st.booleans(), slabs=st.sampled_from([2, 40]))
def test_in_whatever_order_rings_are_read_every_answer_ends_and_is_right(
    policy: str, actions: list[Action], far: bool, slabs: int
) -> None:
    asyncio.run(played(policy, far, slabs, actions))


@pytest.mark.parametrize("damaged", [False, True])
async def test_the_next_pool_answers_from_the_disk_of_the_last(damaged: bool) -> None:
    files: Files = {}
    for read_blocks in (0, 2 if damaged else 5):
        world = MessageWorld("slack", files=files)
        asked = request("r", "one", range(3, 90), max_new_tokens=4, ignore_eos=True)
        client = asyncio.create_task(collect(world.frontend, asked))
        await until(client, lambda frontend=world.frontend: bool(frontend.request_ids))  # type: ignore[misc]
        await world.settle()
        assert await client == answer(asked)
        assert world.disk.read_blocks == read_blocks
        assert len(files) == 5
        world.check_books()
        world.close()
        if damaged:
            world.disk.damage(2)


# --- one request, all interleavings -----------------------------------------------------------------------------------

ASKED = request("a", "one", range(3, 9), max_new_tokens=2, ignore_eos=True)


def interleavings(*rings: Sequence[str]) -> list[tuple[str, ...]]:
    """All orders in which messages of rings can be read, one at a time."""
    reads = [ring for ring, *messages in rings for _ in messages]
    return sorted(set(permutations(reads)))


class Scripted:
    """A frontend of a node whose rings a test fills."""

    def __init__(self) -> None:
        served = ServedModel(ModelSpec("one", 1, SHAPE, 512), None, Words(), VOCABULARY, (EOS,))  # type: ignore[arg-type]
        self.frontend = PoolFrontend({"one": served}, Clock())
        self.rings = {"driver": Ring(), "p": Ring(), "d": Ring()}
        self.sent = Ring()
        self.peer = Peer("f", End(self.rings["driver"], self.sent), False, self.frontend.receive)
        for key in ("p", "d"):
            self.peer.inbox.add(key, self.rings[key])
        self.frontend.take_in(self.peer)
        self.script: dict[str, deque[object]] = {key: deque() for key in self.rings}

    async def ask(self, asked: GenerationRequest = ASKED) -> asyncio.Task[Any]:
        task = asyncio.create_task(collect(self.frontend, asked))
        await until(task, lambda: bool(self.sent.messages))
        return task

    async def read(self, ring: str) -> None:
        """One message more of a ring comes, and is read."""
        self.rings[ring].messages.append(self.script[ring].popleft())
        self.peer.inbox.take_from_driver() if ring == "driver" else self.peer.inbox.take_from(ring)
        await asyncio.sleep(0)


IDS, TEXT, REASON = answer(ASKED)
FIRST, SECOND = (m.Tokens(float(index), (("a", index, token_id),)) for index, token_id in enumerate(IDS))
END = m.Finished("a", FinishReason.LENGTH, 2)


@pytest.mark.parametrize("order", interleavings(("driver", 1), ("p", 1), ("d", 1, 2)))
async def test_an_answer_is_whole_in_whatever_order_three_rings_are_read(order: tuple[str, ...]) -> None:
    node = Scripted()
    task = await node.ask()
    node.script = {"driver": deque([m.Accepted("a")]), "p": deque([FIRST]), "d": deque([SECOND, END])}
    for ring in order:
        await node.read(ring)
    assert await asyncio.wait_for(task, 5) == (IDS, TEXT, REASON)
    assert not node.frontend.request_ids


@pytest.mark.parametrize("order", interleavings(("driver", 1), ("p", 1), ("d", 1)))
async def test_a_stop_string_ends_the_answer_before_and_after_it_was_accepted(order: tuple[str, ...]) -> None:
    node = Scripted()
    task = await node.ask(request("a", "one", range(3, 9), max_new_tokens=9, ignore_eos=True, stop=(f"<{IDS[0]}>",)))
    node.script = {"driver": deque([m.Accepted("a")]), "p": deque([FIRST]), "d": deque([SECOND])}
    for ring in order:
        await node.read(ring)
    assert await asyncio.wait_for(task, 5) == (IDS[:1], "", FinishReason.STOP)
    assert m.Cancel("a") in node.sent.messages


@pytest.mark.parametrize("order", interleavings(("driver", 1), ("p", 1)))
async def test_a_client_that_leaves_at_any_point_leaves_nothing(order: tuple[str, ...]) -> None:
    for point in range(len(order) + 1):
        node = Scripted()
        task = await node.ask()
        node.script = {"driver": deque([m.Accepted("a")]), "p": deque([FIRST]), "d": deque()}
        for ring in order[:point]:
            await node.read(ring)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        for ring in order[point:]:
            await node.read(ring)
        assert m.Cancel("a") in node.sent.messages
        assert not node.frontend.request_ids


@pytest.mark.parametrize("word", [m.Failed("a", "boom"), m.Rejected("a", RejectReason.TOO_LARGE, "boom", None)])
async def test_what_the_driver_says_of_the_end_comes_after_all_tokens(word: object) -> None:
    node = Scripted()
    asked = asyncio.create_task(node.frontend.generate(ASKED))
    await until(asked, lambda: bool(node.sent.messages))
    node.rings["d"].messages += [SECOND]
    node.rings["p"].messages += [FIRST]
    node.rings["driver"].messages += [m.Accepted("a"), word]
    node.peer.inbox.take_from_driver()
    deltas = aiter(await asked)
    assert (*(await anext(deltas)).token_ids, *(await anext(deltas)).token_ids) == IDS
    with pytest.raises(GenerationError, match="boom"):
        await anext(deltas)


async def test_whoever_goes_on_is_told_of_the_tokens_of_every_ring() -> None:
    node = Scripted()
    task = await node.ask(request("a", "one", range(3, 9), max_new_tokens=9, ignore_eos=True))
    node.rings["p"].messages += [FIRST]
    node.rings["driver"].messages += [m.Accepted("a"), m.Interrupted("a", "d")]
    node.peer.inbox.take_from_driver()
    assert node.sent.messages[-1] == m.Resume("a", IDS[:1])
    task.cancel()


@pytest.mark.parametrize("last", [(SECOND,), (SECOND, END)], ids=["Finished was never sent", "Finished was sent"])
async def test_an_output_that_is_whole_is_not_gone_on_with(last: tuple[object, ...]) -> None:
    node = Scripted()
    task = await node.ask()
    node.rings["p"].messages += [FIRST]
    node.rings["d"].messages += last
    node.rings["driver"].messages += [m.Accepted("a"), m.Interrupted("a", "d")]
    node.peer.inbox.take_from_driver()
    assert node.sent.messages[-1] == m.Cancel("a")
    assert await asyncio.wait_for(task, 5) == (IDS, TEXT, REASON)


async def test_what_came_out_of_turn_before_a_death_does_not_count_after_it() -> None:
    """A token beyond a gap is made again; what is made then is what the client gets."""
    node = Scripted()
    task = await node.ask(request("a", "one", range(3, 9), max_new_tokens=3, ignore_eos=True))
    node.rings["d"].messages += [m.Tokens(0.0, (("a", 1, 99),)), m.Finished("a", FinishReason.LENGTH, 2)]
    node.rings["driver"].messages += [m.Interrupted("a", "d")]
    node.peer.inbox.take_from_driver()
    assert node.sent.messages[-1] == m.Resume("a", ())
    node.rings["p"].messages += [m.Tokens(0.0, (("a", 0, 5), ("a", 1, 6), ("a", 2, 7)))]
    node.rings["p"].messages += [m.Finished("a", FinishReason.LENGTH, 3)]
    node.peer.inbox.take_from("p")
    ids, _, _ = await asyncio.wait_for(task, 5)
    assert ids == (5, 6, 7)


# --- an instance whose ring to a frontend is full ---------------------------------------------------------------------


def test_the_driver_hears_of_output_only_when_it_is_where_it_outlives_the_instance() -> None:
    told, rings = Ring(), {"f": Ring()}
    sinks = Sinks(lambda frontend_id: rings[frontend_id], lambda: None)
    sinks.attach("f", "nowhere")
    reports = OrderedReports(End(Ring(), told), sinks)  # type: ignore[arg-type]
    sinks.full = True
    sinks.send("f", END)
    for message in (m.NeedBlocks(1, "b", 9), m.SequenceFinished(1, m.Progress("a", (), 0)), m.Forgotten(("a",))):
        reports.send(message)
    reports.flush()
    assert list(told.messages) == [m.NeedBlocks(1, "b", 9)]
    sinks.full = False
    sinks.flush()
    reports.flush()
    assert list(told.messages)[1:] == [m.SequenceFinished(1, m.Progress("a", (), 0)), m.Forgotten(("a",))]
    assert list(rings["f"].messages) == [END]
