"""A pool whose instances are processes, killed at points that a seed draws: no answer is lost, longer or different."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from aegaeon.core.config import InstanceConfig, ModelConfig, PoolConfig
from aegaeon.core.generation import GenerationRequest, TokenPrompt
from aegaeon.core.instance import Role
from aegaeon.core.sampling import BeamParams, SamplingParams
from aegaeon.core.slo import Slo
from aegaeon.runtime.instance.worker import run_worker
from aegaeon.runtime.instance.worker_options import WorkerOptions
from aegaeon.runtime.node.node import Ended
from tests.runtime.test_beams import outputs_of, search_alone
from tests.worlds.in_process_pool import InProcessPool, Output

# Torch is imported once, in a process without threads, of which the instances are forks.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([run_worker.__module__])

KILLS = 3
LONG_TOKENS = 400
# Short and one-token answers of two models, beside a long one that is followed. Wherever a token is chosen, the best is
# better than the second by 2e-4 at least: who shares a batch changes the last bits of logits.
SHORT = [(f"m{index % 2}", 1 + index * index) for index in range(7)]


class ProcessPool(InProcessPool):
    """Its instances can be killed, each once."""

    def __init__(self, config: PoolConfig, kv_cache_bytes: int, weight_cache_bytes: int, folder: Path) -> None:
        super().__init__(config, kv_cache_bytes, weight_cache_bytes, folder)
        self.killed: set[int] = set()

    def _spawn(self, options: WorkerOptions, ended: Ended) -> None:
        process = PROCESSES.Process(target=run_worker, args=(options,), daemon=True)

        def watch() -> None:
            process.start()
            process.join()
            ended(f"exit code {process.exitcode}")

        self.threads.append(threading.Thread(target=watch, name=options.key))
        self.threads[-1].start()

    def kill_whoever_runs(self, model: str) -> bool:
        """kill -9 an instance in a turn of the model, if there is one."""
        for instance in (one for _, state in self.frontend.node_states() for one in state.instances):
            if instance.alive and instance.model == model and instance.pid not in self.killed:
                self.killed.add(instance.pid)
                os.kill(instance.pid, signal.SIGKILL)
                return True
        return False


async def follow_and_kill(pool: ProcessPool, kill_at: list[int]) -> tuple[int, ...]:
    """The long answer; once it has so many tokens, whoever runs it is killed."""
    sampling = SamplingParams(max_new_tokens=LONG_TOKENS, temperature=0.0, ignore_eos=True)
    ids: list[int] = []
    async for delta in await pool.frontend.generate(
        GenerationRequest("followed", "m0", TokenPrompt(tuple(range(10, 30))), sampling)
    ):
        ids += delta.token_ids
        if kill_at and len(ids) >= kill_at[0] and pool.kill_whoever_runs("m0"):
            del kill_at[0]
    return tuple(ids)


async def ask_all(pool: ProcessPool, round_: str) -> list[Output]:
    asked = [
        pool.generate(f"{round_}{index}", model, range(10 + index, 30), tokens)
        for index, (model, tokens) in enumerate(SHORT)
    ]
    return await asyncio.gather(*asked)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["attention", "states"])
async def test_kills_at_any_point_change_no_answer_and_condemn_nobody(
    model_paths: Callable[[int], dict[str, Path]], hybrid_paths: dict[str, Path], tmp_path: Path, kind: str
):
    paths = model_paths(2) if kind == "attention" else {"m0": hybrid_paths["bamba"], "m1": hybrid_paths["lfm2"]}
    config = PoolConfig(
        models=tuple(ModelConfig(name, path, Slo()) for name, path in paths.items()),
        instances=(InstanceConfig(Role.PREFILL, 1), InstanceConfig(Role.DECODE, 1)),
        device="cpu",
        slab_bytes=1 << 20,
    )
    draw = random.Random(15)
    kill_at = [start + draw.randrange(60) for start in (10, 140, 270)]
    async with ProcessPool(config, 16 << 20, 64 << 20, tmp_path) as pool:
        expected_ids = await follow_and_kill(pool, [])
        expected = await ask_all(pool, "calm")
        followed = asyncio.create_task(follow_and_kill(pool, kill_at))
        rounds = [await ask_all(pool, f"killed{round_}-") for round_ in range(KILLS)]
        assert await followed == expected_ids
        assert len(kill_at) < KILLS, "the answer was over before an instance could be killed"
        for outputs in rounds:
            assert [output.token_ids for output in outputs] == [output.token_ids for output in expected]
            assert outputs == expected
        assert all(card.failure is None for card in pool.frontend.models())
        await pool.settled()


@pytest.mark.slow
async def test_kills_change_no_search(model_paths: Callable[[int], dict[str, Path]], tmp_path: Path):
    """Of all that is kept or dropped in it, nothing is nearer to the limit than 1e-3. Killed within its turn it has
    got nowhere, as far as its driver knows: a third time it would be taken for the cause."""
    config = PoolConfig(
        models=tuple(ModelConfig(name, path, Slo()) for name, path in model_paths(2).items()),
        device="cpu",
        slab_bytes=1 << 20,
    )
    beams, prompt = BeamParams(4, 4), tuple(range(12, 30))
    async with ProcessPool(config, 16 << 20, 64 << 20, tmp_path) as pool:
        other = asyncio.create_task(pool.generate("other", "m1", range(10, 30), LONG_TOKENS))
        generation = await pool.submit("search", "m0", prompt, 120, beams=beams)
        found = asyncio.create_task(outputs_of(generation))
        killed = 0
        while not found.done() and killed < 2:
            killed += pool.kill_whoever_runs("m0")
            await asyncio.sleep(0.02)
        assert killed == 2, "the search was over before an instance could be killed"
        assert await found == search_alone(model_paths(2)["m0"], prompt, beams, 120)
        await other
        await pool.settled()
