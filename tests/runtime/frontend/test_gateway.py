"""A frontend that reaches its node over TCP, as from another machine."""

from __future__ import annotations

import asyncio

import pytest

import aegaeon.runtime.frontend.gateway as gateway_module
from aegaeon.core.generation import GenerationRequest, PoolUnavailableError, TokenPrompt
from aegaeon.core.sampling import SamplingParams
from aegaeon.runtime.frontend.frontend import PoolFrontend
from aegaeon.runtime.frontend.gateway import Endpoint, Gateway, RemoteConnection
from aegaeon.runtime.wire.clock import MonotonicClock

WAIT_S = 20.0
PROMPT = tuple(range(10, 30))


class SlowClock:
    """The clock of a machine that was started later."""

    def now_s(self) -> float:
        return MonotonicClock().now_s() - 1000.0


async def test_requests_of_another_machine_are_served_and_times_are_on_its_clock(pool):
    async with pool(2) as running:
        local = await running.generate("local", "m0", PROMPT, 16)
        gateway = Gateway("n0", running.node.address, "127.0.0.1", MonotonicClock())
        far = PoolFrontend(running.frontend.served, SlowClock())
        await far.connect_remote("n0", gateway.endpoint)
        running.frontend, near = far, running.frontend
        remote = await running.generate("remote", "m0", PROMPT, 16)
        assert remote.token_ids == local.token_ids
        params = SamplingParams(max_new_tokens=4, temperature=0.0)
        generation = await far.generate(GenerationRequest("timed", "m1", TokenPrompt(PROMPT), params))
        times_s = [time_s async for delta in generation for time_s in delta.token_times_s]
        now_s = SlowClock().now_s()
        assert now_s - 30 < generation.arrival_s < times_s[0] <= times_s[-1] <= now_s + 0.01
        far.close()
        await asyncio.to_thread(gateway.close)
        running.frontend = near


async def test_a_wrong_secret_gets_nothing(pool):
    async with pool(1) as running:
        gateway = Gateway("n0", running.node.address, "127.0.0.1", MonotonicClock())
        wrong = Endpoint(gateway.endpoint.host, gateway.endpoint.port, b"x" * len(gateway.endpoint.secret))
        far = PoolFrontend(running.frontend.served, MonotonicClock())
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await far.connect_remote("n0", wrong)
        await asyncio.to_thread(gateway.close)


async def test_who_connects_and_says_nothing_is_turned_away(monkeypatch):
    monkeypatch.setattr(gateway_module, "_HANDSHAKE_S", 0.05)
    gateway = Gateway("n0", "/nowhere", "127.0.0.1", MonotonicClock())
    reader, writer = await asyncio.open_connection(gateway.endpoint.host, gateway.endpoint.port)
    assert await asyncio.wait_for(reader.read(), WAIT_S) == b""
    writer.close()
    await asyncio.to_thread(gateway.close)


async def test_only_so_many_may_have_said_nothing_yet(monkeypatch):
    monkeypatch.setattr(gateway_module, "_MOST_STRANGERS", 2)
    gateway = Gateway("n0", "/nowhere", "127.0.0.1", MonotonicClock())
    place = gateway.endpoint.host, gateway.endpoint.port
    ends = [await asyncio.open_connection(*place) for _ in range(3)]
    assert await asyncio.wait_for(ends[2][0].read(), WAIT_S) == b"", "one too many"
    ends[0][1].write(b"x" * len(gateway.endpoint.secret))
    assert await asyncio.wait_for(ends[0][0].read(), WAIT_S) == b"", "a wrong secret"
    ends.append(await asyncio.open_connection(*place))
    ends[3][1].write(gateway.endpoint.secret + b"?")
    assert len(await asyncio.wait_for(ends[3][0].readexactly(8), WAIT_S)) == 8, "there is room again: it hears the time"
    for _, writer in ends:
        writer.close()
    await asyncio.to_thread(gateway.close)


async def test_a_gateway_that_says_nothing_is_given_up(monkeypatch):
    monkeypatch.setattr(gateway_module, "_HANDSHAKE_S", 0.05)
    ended = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        ended.set()

    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as server:
        endpoint = Endpoint("127.0.0.1", server.sockets[0].getsockname()[1], b"secret")
        with pytest.raises(TimeoutError):
            await PoolFrontend({}, MonotonicClock()).connect_remote("n0", endpoint)
        await asyncio.wait_for(ended.wait(), WAIT_S)  # nothing of it stays open


async def test_what_a_gateway_sends_that_nobody_can_read_loses_the_node():
    async def talk_nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(b"secret"))
        for _ in range(5):
            await reader.readexactly(1)
            writer.write(bytes(8))
        writer.write((3).to_bytes(4, "little") + b"???")
        await reader.read()
        writer.close()

    async with await asyncio.start_server(talk_nonsense, "127.0.0.1", 0) as server:
        lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        endpoint = Endpoint("127.0.0.1", server.sockets[0].getsockname()[1], b"secret")
        connection = await RemoteConnection.open(
            "n0", endpoint, MonotonicClock(), lambda *_: None, lambda node: lost.set_result(node.node_id)
        )
        assert await asyncio.wait_for(lost, WAIT_S) == "n0"
        connection.close()


async def test_requests_of_a_lost_node_fail_where_none_comes_back(pool):
    async with pool(1) as running:
        gateway = Gateway("n0", running.node.address, "127.0.0.1", MonotonicClock())
        far = PoolFrontend(running.frontend.served, MonotonicClock(), homeless_s=0.0)
        await far.connect_remote("n0", gateway.endpoint)
        params = SamplingParams(max_new_tokens=450, temperature=0.0, ignore_eos=True)
        generation = await far.generate(GenerationRequest("lost", "m0", TokenPrompt(PROMPT), params))
        tokens = aiter(generation)
        await anext(tokens)
        await asyncio.to_thread(gateway.close)
        with pytest.raises(PoolUnavailableError, match="no node"):
            [delta async for delta in tokens]
        far.close()
        await running.settled()
