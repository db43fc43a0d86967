"""Which node of a pool takes a request: two whole nodes behind one frontend, all in this process."""

from __future__ import annotations

import asyncio

import pytest

from aegaeon.runtime.frontend.frontend import PoolFrontend
from aegaeon.runtime.frontend.gateway import Gateway
from aegaeon.runtime.wire.clock import MonotonicClock
from aegaeon.scheduler.policies.registry import make_router
from tests.runtime.test_pool import generate_alone, prompt_for

MODELS = 4


async def models_by_node(running, wanted: int) -> dict[str, set[str]]:
    """What each node has read into its memory, once reports tell of as many models; fails after a while."""
    async with asyncio.timeout(20):
        while True:
            cached = {node_id: set(state.weights_cached) for node_id, state in running.frontend.node_states()}
            if sum(map(len, cached.values())) >= wanted:
                return cached
            await asyncio.sleep(0.02)


async def test_a_policy_with_homes_serves_each_model_on_one_node(pool, model_paths):
    async with pool(MODELS, policy="slack", nodes=2) as running:
        for i in range(2 * MODELS):  # one after the other: nobody is busy, so without homes one node would do
            output = await running.generate(f"r{i}", f"m{i % MODELS}", prompt_for(i), 8)
            assert output.token_ids == generate_alone(model_paths(MODELS)[f"m{i % MODELS}"], prompt_for(i), 8)
        cached = await models_by_node(running, MODELS)
        await running.settled()
    assert cached == {"n0": {"m0", "m2"}, "n1": {"m1", "m3"}}


async def idle(running) -> None:
    """Until all nodes report that nothing is under way; fails after a while."""
    async with asyncio.timeout(20):
        while any(state.waiting or state.running for _, state in running.frontend.node_states()):
            await asyncio.sleep(0.02)


async def test_a_policy_without_homes_sends_them_to_a_node_that_has_the_model(pool):
    async with pool(MODELS, policy="aegaeon", nodes=2) as running:
        for i in range(MODELS):
            await running.generate(f"r{i}", f"m{i}", prompt_for(i), 8)
        cached = await models_by_node(running, MODELS)
        for i in range(MODELS):
            await idle(running)  # else the node that has the model may look busier than the other
            await running.generate(f"again{i}", f"m{i}", prompt_for(i), 8)
        await idle(running)
        assert await models_by_node(running, MODELS) == cached
        await running.settled()
    assert sum(map(len, cached.values())) == MODELS, "none was read twice"


@pytest.mark.parametrize("policy", ["aegaeon", "slack"])
async def test_when_a_node_is_lost_the_others_take_over_its_models(pool, policy):
    async with pool(MODELS, policy=policy, nodes=2) as running:
        near = running.frontend
        specs = [model.spec for model in near.served.values()]
        far = PoolFrontend(
            near.served, MonotonicClock(), lambda nodes: make_router(policy, specs, nodes, host_bytes=64 << 20)
        )
        gateways = [Gateway(node.node_id, node.address, "127.0.0.1", MonotonicClock()) for node in running.nodes]
        for node, gateway in zip(running.nodes, gateways, strict=True):
            await far.connect_remote(node.node_id, gateway.endpoint)
        running.frontend = far
        before = [await running.generate(f"b{i}", f"m{i}", prompt_for(i), 8) for i in range(MODELS)]
        await asyncio.to_thread(gateways[1].close)
        async with asyncio.timeout(20):
            while len(far.node_states()) > 1:
                await asyncio.sleep(0.01)
        after = [await running.generate(f"a{i}", f"m{i}", prompt_for(i), 8) for i in range(MODELS)]
        assert after == before
        far.close()
        await asyncio.to_thread(gateways[0].close)
        running.frontend = near
        await running.settled()
