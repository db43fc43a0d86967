"""A frontend that reaches its node over TCP, as from another machine."""

from __future__ import annotations

import asyncio

import pytest

from aegaeon.core.generation import GenerationRequest, PoolUnavailableError, TokenPrompt
from aegaeon.core.sampling import SamplingParams
from aegaeon.runtime.clock import MonotonicClock
from aegaeon.runtime.frontend import PoolFrontend
from aegaeon.runtime.gateway import Endpoint, Gateway

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
