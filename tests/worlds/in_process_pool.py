"""Whole nodes within the test's own process: the same code as in a pool, without Ray."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from aegaeon.core.config import PoolConfig
from aegaeon.core.generation import FinishReason, Generation, GenerationRequest, TextPrompt, TokenPrompt
from aegaeon.core.sampling import SamplingParams
from aegaeon.engine.architecture.image import needs_image
from aegaeon.engine.architecture.prepare import prepare_models
from aegaeon.runtime.frontend.frontend import PoolFrontend
from aegaeon.runtime.frontend.served_model import ServedModel
from aegaeon.runtime.instance.worker import run_worker
from aegaeon.runtime.instance.worker_options import WorkerOptions
from aegaeon.runtime.node.node import Ended, Node, NodeOptions
from aegaeon.runtime.wire.clock import MonotonicClock
from aegaeon.scheduler.policies.registry import make_router
from tests.worlds.served import WAIT_S


@dataclass(frozen=True)
class Output:
    """What a client got; ``cached_tokens`` of its prompt were not computed for it, which changes nothing else."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    cached_tokens: int = field(default=0, compare=False)


def is_idle(node: Node) -> bool:
    """Whether a driver has heard that all its requests have ended: tokens reach clients before that."""
    found: queue.SimpleQueue[bool] = queue.SimpleQueue()
    node.driver.wakeup.post(lambda: found.put(node.driver.idle))
    return found.get(timeout=WAIT_S)


class InProcessPool:
    """Nodes whose instances are threads; use it as an async context manager."""

    def __init__(self, config: PoolConfig, kv_cache_bytes: int, weight_cache_bytes: int, folder: Path) -> None:
        prepared, refused = prepare_models(config.models, config.block_tokens, folder)
        assert not refused, refused
        self.threads: list[threading.Thread] = []
        self.nodes = [
            Node(
                NodeOptions(config, f"n{index}", kv_cache_bytes, weight_cache_bytes, 1),
                prepared,
                self._spawn,
                needs_image,
            )
            for index in range(config.nodes)
        ]
        self._prepared = prepared
        self._make_router = partial(
            make_router, config.policy, [model.spec for model in prepared], host_bytes=weight_cache_bytes
        )

    @property
    def node(self) -> Node:
        """The first."""
        return self.nodes[0]

    def _spawn(self, options: WorkerOptions, ended: Ended) -> None:
        def run() -> None:
            run_worker(options)
            ended("it ended")

        self.threads.append(threading.Thread(target=run, name=options.key))
        self.threads[-1].start()

    async def __aenter__(self) -> InProcessPool:
        self.drivers = [threading.Thread(target=node.run) for node in self.nodes]
        for driver, node in zip(self.drivers, self.nodes, strict=True):
            driver.start()
            node.start()
        served = {model.spec.name: ServedModel.of(model) for model in self._prepared}
        self.frontend = PoolFrontend(served, MonotonicClock(), lambda nodes: self._make_router(nodes=nodes))
        for node in self.nodes:
            self.frontend.connect(node.node_id, node.address)
        while not self._up():
            await asyncio.sleep(0.01)
        return self

    def _up(self) -> bool:
        states = [state for _, state in self.frontend.node_states()]
        return len(states) == len(self.nodes) and all(one.alive for state in states for one in state.instances)

    async def __aexit__(self, *_: object) -> None:
        self.frontend.close()
        for node in self.nodes:
            node.stop()
        for thread in (*self.drivers, *self.threads):
            await asyncio.to_thread(thread.join, WAIT_S)
            assert not thread.is_alive(), f"{thread.name} did not end"

    async def generate(
        self,
        request_id: str,
        model: str,
        prompt: str | Sequence[int],
        max_new_tokens: int = 24,
        salt: str = "",
        **options: Any,
    ) -> Output:
        """One request from submission to its end; greedy unless told otherwise. ``options``: as of ``submit``."""
        return await self.collect(await self.submit(request_id, model, prompt, max_new_tokens, salt=salt, **options))

    async def submit(
        self,
        request_id: str,
        model: str,
        prompt: str | Sequence[int],
        max_new_tokens: int = 24,
        *,
        first: Generation | None = None,
        salt: str = "",
        **sampling: Any,
    ) -> Generation:
        """One request that is under way; ``first``: another choice of the same prompt."""
        params = SamplingParams(
            **{"max_new_tokens": max_new_tokens, "temperature": 0.0, "ignore_eos": True, **sampling}
        )
        asked = TextPrompt(prompt) if isinstance(prompt, str) else TokenPrompt(tuple(prompt))
        request = GenerationRequest(request_id, model, asked, params, cache_salt=salt)
        return await self.frontend.generate(request, first)

    async def collect(self, generation: Generation) -> Output:
        """All that comes of a request."""
        text, reason = "", None
        ids: list[int] = []
        async for delta in generation:
            text += delta.text
            ids += delta.token_ids
            reason = delta.finish_reason
        assert reason is not None
        return Output(text, tuple(ids), reason, generation.cached_tokens)

    async def settled(self) -> None:
        """Wait until the pool holds nothing of any request; fails after a while."""
        async with asyncio.timeout(WAIT_S):
            while not all(await asyncio.gather(*(asyncio.to_thread(is_idle, node) for node in self.nodes))):
                await asyncio.sleep(0.02)
            while True:
                states = [state for _, state in self.frontend.node_states()]
                if states and not any(s.waiting or s.running or s.kv.used_bytes for s in states):
                    break
                await asyncio.sleep(0.02)
