"""A node's driver dies: its requests wait, go elsewhere, go on with the tokens they would have had."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import pairwise
from typing import TypeVar

import pytest

from aegaeon.core.generation import (
    EngineError,
    FinishReason,
    Generation,
    GenerationRequest,
    ModelCard,
    PoolUnavailableError,
    TokenPrompt,
)
from aegaeon.core.kv_shape import KvShape, LayerKv
from aegaeon.core.model import ModelSpec
from aegaeon.core.sampling import SamplingParams
from aegaeon.core.slo import Slo
from aegaeon.engine.architecture.image import needs_image
from aegaeon.runtime.frontend.frontend import PoolFrontend
from aegaeon.runtime.frontend.served_model import ServedModel
from aegaeon.runtime.instance.worker_options import WorkerOptions
from aegaeon.runtime.node.node import Ended, Node
from aegaeon.runtime.wire import messages as m
from aegaeon.runtime.wire.clock import MonotonicClock
from aegaeon.runtime.wire.fd_exchange import FdServer
from aegaeon.runtime.wire.link import Link, create_link
from tests.worlds.in_process_pool import InProcessPool
from tests.worlds.message_world import Words

PROMPT = (10, 11, 12)
EOS = 1
SLO = Slo(ttft_s=2.0, tpot_s=0.5)
WAIT_S = 20.0
_Message = TypeVar("_Message")


class ScriptedDriver:
    """A driver that says what a test wants, at a real descriptor server and over real links."""

    def __init__(self) -> None:
        self._links: list[Link] = []
        self._server = FdServer(self._provide)
        self.address = self._server.address

    def _provide(self, name: str) -> list[int]:
        link, fds = create_link()
        self._links.append(link)
        return fds

    async def submitted(self) -> m.Submit:
        """The next request that it is given."""
        return await self.received(m.Submit)

    async def received(self, kind: type[_Message]) -> _Message:
        async with asyncio.timeout(WAIT_S):
            while True:
                for message in self._links[0].drain():
                    if isinstance(message, kind):
                        return message
                await asyncio.sleep(0.005)

    def send(self, *messages: object) -> None:
        for message in messages:
            self._links[0].send(message)

    def tokens(self, request_id: str, first: int, *ids: int) -> None:
        self.send(m.Tokens(0.0, tuple((request_id, first + place, token) for place, token in enumerate(ids))))

    def die(self) -> None:
        self._server.close()
        for link in self._links:
            link.close()


@pytest.fixture
def driver() -> Iterator[Callable[[], ScriptedDriver]]:
    made: list[ScriptedDriver] = []

    def make() -> ScriptedDriver:
        made.append(ScriptedDriver())
        return made[-1]

    yield make
    for driver in made:
        with contextlib.suppress(OSError, ValueError):  # it has died
            driver.die()


def make_frontend(homeless_s: float = 60.0, text: Words | None = None) -> PoolFrontend:
    spec = ModelSpec("m", 1 << 20, KvShape((LayerKv(1, 4, 4),)), 512, SLO)
    served = ServedModel(spec, ModelCard("m", "Llama", 512, 1, 0, True), text or Words(), 320, (EOS,))  # type: ignore[arg-type]
    return PoolFrontend({"m": served}, MonotonicClock(), homeless_s=homeless_s)


def ask(request_id: str = "r", new_tokens: int = 4) -> GenerationRequest:
    return GenerationRequest(request_id, "m", TokenPrompt(PROMPT), SamplingParams(max_new_tokens=new_tokens, seed=7))


async def started(frontend: PoolFrontend, driver: ScriptedDriver, request: GenerationRequest) -> Generation:
    """A request that the driver has accepted."""
    asked = asyncio.create_task(frontend.generate(request))
    submit = await driver.submitted()
    driver.send(m.Accepted(submit.request.request_id))
    return await asked


async def lost(frontend: PoolFrontend, driver: ScriptedDriver) -> None:
    """The driver dies, and the frontend knows."""
    driver.die()
    async with asyncio.timeout(WAIT_S):
        while frontend.connected("n"):
            await asyncio.sleep(0.005)


async def text_of(generation: Generation) -> tuple[str, FinishReason | None]:
    text, reason = "", None
    async with asyncio.timeout(WAIT_S):
        async for delta in generation:
            text, reason = text + delta.text, delta.finish_reason
    return text, reason


async def test_a_request_goes_on_at_the_next_driver_after_the_tokens_that_it_has(driver) -> None:
    frontend, first, second = make_frontend(), driver(), driver()
    frontend.connect("n", first.address)
    generation = await started(frontend, first, ask())
    first.tokens("r", 0, 20, 21)
    await lost(frontend, first)
    frontend.connect("n", second.address)
    again = await second.submitted()
    assert again.generated_ids == (20, 21)
    assert again.prompt_ids == PROMPT
    assert again.sampling.seed == 7
    # The next token, which is the first for its driver, is due when it always was.
    assert again.request.arrival_s == pytest.approx(generation.arrival_s + 2 * SLO.tpot_s)
    name = again.request.request_id
    second.tokens(name, 1, 21, 22)  # one that it has comes again
    second.tokens(name, 3, 23)
    second.send(m.Finished(name, FinishReason.LENGTH, 4))
    assert await text_of(generation) == ("<20><21><22><23>", FinishReason.LENGTH)
    frontend.close()


async def test_what_a_driver_had_said_before_it_died_counts(driver) -> None:
    frontend, first = make_frontend(), driver()
    frontend.connect("n", first.address)
    generation = await started(frontend, first, ask(new_tokens=2))
    first.tokens("r", 0, 20, 21)
    first.send(m.Finished("r", FinishReason.LENGTH, 2))
    await lost(frontend, first)
    assert await text_of(generation) == ("<20><21>", FinishReason.LENGTH)
    frontend.close()


@pytest.mark.parametrize(("ids", "reason"), [((20, 21, 22, 23), FinishReason.LENGTH), ((20, EOS), FinishReason.STOP)])
async def test_a_request_that_only_lacked_the_word_that_it_is_finished_is_finished(driver, ids, reason) -> None:
    frontend, first, second = make_frontend(), driver(), driver()
    frontend.connect("n", first.address)
    generation = await started(frontend, first, ask())
    first.tokens("r", 0, *ids)
    await lost(frontend, first)
    assert (await text_of(generation))[1] is reason
    frontend.connect("n", second.address)
    await started(frontend, second, ask("next"))  # the first that the second driver hears of
    frontend.close()


async def test_new_requests_wait_for_a_driver(driver) -> None:
    frontend, first, second = make_frontend(), driver(), driver()
    frontend.connect("n", first.address)
    await lost(frontend, first)
    assert not frontend.health().ready
    asked = asyncio.create_task(frontend.generate(ask()))
    await asyncio.sleep(0)
    frontend.connect("n", second.address)
    submit = await second.submitted()
    second.send(m.Accepted(submit.request.request_id))
    second.tokens(submit.request.request_id, 0, 20)
    second.send(m.Finished(submit.request.request_id, FinishReason.STOP, 1))
    assert await text_of(await asked) == ("<20>", FinishReason.STOP)
    frontend.close()


async def test_a_request_that_is_given_up_while_it_waits_is_not_submitted(driver) -> None:
    frontend, first, second = make_frontend(), driver(), driver()
    frontend.connect("n", first.address)
    generation = await started(frontend, first, ask("gone"))
    await lost(frontend, first)
    await generation.cancel()
    frontend.connect("n", second.address)
    asked = asyncio.create_task(frontend.generate(ask("next")))
    assert (await second.submitted()).request.request_id == "next"
    asked.cancel()
    frontend.close()


async def test_no_driver_comes_back(driver) -> None:
    frontend, first, second = make_frontend(homeless_s=0.05), driver(), driver()
    frontend.connect("n", first.address)
    generation = await started(frontend, first, ask())
    await lost(frontend, first)
    with pytest.raises(PoolUnavailableError):
        await text_of(generation)
    with pytest.raises(PoolUnavailableError):
        await frontend.generate(ask("later"))
    frontend.connect("n", second.address)
    await started(frontend, second, ask("served"))
    frontend.close()


async def test_a_request_that_drivers_die_of_is_not_tried_for_ever(driver) -> None:
    frontend, drivers = make_frontend(), [driver() for _ in range(4)]
    frontend.connect("n", drivers[0].address)
    generation = await started(frontend, drivers[0], ask(new_tokens=9))
    for place, (dying, following) in enumerate(pairwise(drivers)):
        if place == 1:
            dying.tokens((await dying.submitted()).request.request_id, 0, 20)  # it comes on: not the cause so far
        await lost(frontend, dying)
        frontend.connect("n", following.address)
    await drivers[3].submitted()
    await lost(frontend, drivers[3])
    with pytest.raises(EngineError, match="may be the cause"):
        await text_of(generation)
    frontend.close()


async def test_drivers_that_die_fail_nobody_that_only_waited(driver) -> None:
    frontend, drivers = make_frontend(), [driver() for _ in range(4)]
    frontend.connect("n", drivers[0].address)
    running = await started(frontend, drivers[0], ask("running"))
    waiting = await started(frontend, drivers[0], ask("waiting"))
    late = [asyncio.create_task(frontend.generate(ask(f"late{number}"))) for number in range(2)]
    for _ in late:
        await drivers[0].submitted()  # it died before it had answered
    drivers[0].send(m.Begun("running"))
    for dying, following in pairwise(drivers):
        await lost(frontend, dying)
        frontend.connect("n", following.address)
        names = [
            (await following.submitted()).request.request_id for _ in range(4 if following is not drivers[3] else 3)
        ]
        following.send(*map(m.Accepted, names), m.Begun(names[0]))
    with pytest.raises(EngineError, match="may be the cause"):
        await text_of(running)
    assert [name.partition("~")[0] for name in names] == ["waiting", "late0", "late1"]
    for name, generation in zip(names, (waiting, *[await task for task in late]), strict=True):
        drivers[3].tokens(name, 0, 20)
        drivers[3].send(m.Finished(name, FinishReason.STOP, 1))
        assert await text_of(generation) == ("<20>", FinishReason.STOP)
    frontend.close()


async def test_of_requests_that_no_driver_answers_only_the_first_may_be_the_cause(driver) -> None:
    frontend, drivers = make_frontend(), [driver() for _ in range(4)]
    frontend.connect("n", drivers[0].address)
    first, second = (asyncio.create_task(frontend.generate(ask(name))) for name in ("first", "second"))
    for dying, following in pairwise(drivers):
        await dying.submitted()
        await dying.submitted()
        await lost(frontend, dying)
        frontend.connect("n", following.address)
    with pytest.raises(EngineError, match="may be the cause"):
        await first
    submit = await drivers[3].submitted()
    drivers[3].send(m.Accepted(submit.request.request_id))
    assert (await second).prompt_tokens == len(PROMPT)
    frontend.close()


class Unreadable:
    """What no frontend can take out of its ring."""

    def __reduce__(self) -> tuple[object, ...]:
        return int, ("no number",)


@pytest.mark.parametrize("strange", [Unreadable(), m.Cancel("r")])
async def test_a_message_that_cannot_be_taken_ends_the_connection_and_not_the_requests(driver, strange) -> None:
    frontend, first, second = make_frontend(), driver(), driver()
    frontend.connect("n", first.address)
    generation = await started(frontend, first, ask())
    first.tokens("r", 0, 20)
    first.send(strange)
    await first.received(m.DetachFrontend)
    assert not frontend.connected("n")
    frontend.connect("n", second.address)
    again = (await second.submitted()).request.request_id
    second.tokens(again, 1, 21)
    second.send(m.Finished(again, FinishReason.STOP, 2))
    assert await text_of(generation) == ("<20><21>", FinishReason.STOP)
    frontend.close()


class Speechless(Words):
    """Has no text for one token."""

    def push(self, token_id: int) -> str:
        if token_id == 66:
            raise KeyError(token_id)
        return super().push(token_id)

    def stream(self, context: object) -> Speechless:
        return self


async def test_output_that_cannot_be_turned_into_text_ends_its_request_and_no_other(driver) -> None:
    frontend, first = make_frontend(text=Speechless()), driver()
    frontend.connect("n", first.address)
    bad, good = [await started(frontend, first, ask(name)) for name in ("bad", "good")]
    first.send(m.Tokens(0.0, (("bad", 0, 20), ("bad", 1, 66), ("good", 0, 20))))
    with pytest.raises(EngineError, match="KeyError: 66"):
        await text_of(bad)
    assert (await first.received(m.Cancel)).request_id == "bad"
    first.send(m.Finished("good", FinishReason.STOP, 1))
    assert await text_of(good) == ("<20>", FinishReason.STOP)
    frontend.close()


async def test_another_node_takes_over_at_once(driver) -> None:
    frontend, first, second = make_frontend(), driver(), driver()
    frontend.connect("n", first.address)
    generation = await started(frontend, first, ask())
    frontend.connect("other", second.address)
    await lost(frontend, first)
    name = (await second.submitted()).request.request_id
    second.tokens(name, 0, 20)
    second.send(m.Finished(name, FinishReason.STOP, 1))
    assert await text_of(generation) == ("<20>", FinishReason.STOP)
    frontend.close()


# --- whole nodes ----------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def node_replaced(running) -> AsyncIterator[None]:
    """The node ends while the body runs; after it there is another one."""
    old = running.node
    old.stop()
    for thread in (*running.drivers, *running.threads):
        await asyncio.to_thread(thread.join, WAIT_S)
    yield
    new = Node(old._options, running._prepared, running._spawn, needs_image)
    running.nodes, running.threads[:] = [new], []
    running.drivers = [threading.Thread(target=new.run)]
    running.drivers[0].start()
    new.start()
    running.frontend.connect(new.node_id, new.address)


@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"temperature": 1.0, "seed": 5}])
async def test_text_is_the_same_as_if_the_driver_had_lived(pool, sampling) -> None:
    async with pool(2) as running:
        expected = [await running.generate(f"e{i}", f"m{i}", PROMPT, 200, **sampling) for i in range(2)]
        tasks = [asyncio.create_task(running.generate(f"r{i}", f"m{i}", PROMPT, 200, **sampling)) for i in range(2)]
        async with asyncio.timeout(WAIT_S):
            while not any(state.running for _, state in running.frontend.node_states()):
                await asyncio.sleep(0.005)
        async with node_replaced(running):
            tasks.append(asyncio.create_task(running.generate("new", "m0", PROMPT, 20, **sampling)))
        outputs = await asyncio.gather(*tasks)
        assert outputs[:2] == expected
        assert outputs[2].token_ids == expected[0].token_ids[:20]
        await running.settled()


async def test_an_instance_that_cannot_be_started_is_one_that_died_at_once(pool, monkeypatch) -> None:
    spawn, refused = InProcessPool._spawn, []

    def cramped(self: InProcessPool, options: WorkerOptions, ended: Ended) -> None:
        if not refused:
            refused.append(options.key)
            raise RuntimeError("can't start new thread")
        spawn(self, options, ended)

    monkeypatch.setattr(InProcessPool, "_spawn", cramped)
    async with pool(1) as running:
        assert len((await running.generate("r", "m0", PROMPT, 4)).token_ids) == 4
    assert refused == ["n0-mixed-0:0"]


async def test_a_frontend_that_dies_leaves_no_request_behind(pool) -> None:
    async with pool(2) as running:
        other = PoolFrontend(running.frontend.served, MonotonicClock())
        other.connect(running.node.node_id, running.node.address)
        params = SamplingParams(max_new_tokens=400, temperature=0.0, ignore_eos=True)
        generations = [
            await other.generate(GenerationRequest(f"r{i}", f"m{i}", TokenPrompt(PROMPT), params)) for i in range(2)
        ]
        await anext(aiter(generations[0]))
        for node in other._peers.values():
            node.close()  # all that the kernel does for a process that is killed
        await running.settled()
        assert (await running.generate("after", "m0", PROMPT, 8)).token_ids
