"""A pool end to end, within one process: real scheduler, driver, instances, engine, frontend, links."""

from __future__ import annotations

import asyncio
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from aegaeon.core.config import InstanceConfig
from aegaeon.core.generation import (
    ContextLengthError,
    FinishReason,
    ModelUnavailableError,
    PromptError,
    UnknownModelError,
)
from aegaeon.core.instance import Role
from aegaeon.engine.architecture.building import building
from aegaeon.scheduler.log import decode, replay

pytestmark = pytest.mark.slow

SPLIT = (InstanceConfig(Role.PREFILL, 1), InstanceConfig(Role.DECODE, 2))


def prompt_for(index: int, tokens: int = 20) -> tuple[int, ...]:
    return tuple(torch.randint(6, 300, (tokens,), generator=torch.Generator().manual_seed(index)).tolist())


@cache
def _alone(path: Path) -> Any:
    with building():  # instances of this process may be at it too
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


@cache
def generate_alone(path: Path, prompt: tuple[int, ...], new_tokens: int) -> tuple[int, ...]:
    """What Hugging Face's own generate() gives."""
    ids = torch.tensor([prompt])
    output = _alone(path).generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return tuple(output[0, len(prompt) :].tolist())


@pytest.mark.parametrize("policy", ["aegaeon", "slack"])
@pytest.mark.parametrize("mode", ["one mixed instance", "split roles", "copying", "copies that land late"])
async def test_many_models_answer_as_each_would_alone(pool, model_paths, mode, policy):
    names = [f"m{i}" for i in range(6)]
    options = {
        "one mixed instance": {},
        "split roles": {"instances": SPLIT},
        "copying": {"copy_to_device": True, "device_bytes": 24 << 20, "resident_models": 2, "instances": SPLIT},
        "copies that land late": {
            "device": "lazy",
            "copy_to_device": True,
            "device_bytes": 24 << 20,
            "resident_models": 2,
            "instances": SPLIT,
        },
    }[mode]
    async with pool(6, policy=policy, **options) as running:
        outputs = await asyncio.gather(*(running.generate(f"r{i}", names[i % 6], prompt_for(i), 24) for i in range(12)))
        await running.settled()
    paths = model_paths(6)
    for i, output in enumerate(outputs):
        assert output.token_ids == generate_alone(paths[names[i % 6]], prompt_for(i), 24)
        assert output.finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize("models", [2, 8, 32])
async def test_however_many_models_share_one_instance_each_is_itself(pool, model_paths, models):
    async with pool(models, resident_models=2) as running:
        outputs = await asyncio.gather(
            *(running.generate(f"r{i}", f"m{i}", prompt_for(i, 12), 6) for i in range(models))
        )
        await running.settled()
    paths = model_paths(models)
    for i, output in enumerate(outputs):
        assert output.token_ids == generate_alone(paths[f"m{i}"], prompt_for(i, 12), 6)


@pytest.mark.parametrize("copying", [False, True])
async def test_when_the_cache_is_too_small_for_all_requests_wait_or_are_recomputed(pool, model_paths, copying):
    options = {"copy_to_device": True, "device_bytes": 12 << 20} if copying else {}
    async with pool(
        ("m0",), kv_cache_bytes=128 << 10, slab_bytes=16 << 10, prefill_chunk_tokens=32, **options
    ) as running:
        outputs = await asyncio.gather(*(running.generate(f"r{i}", "m0", prompt_for(i, 40), 120) for i in range(8)))
        await running.settled()
    path = model_paths(1)["m0"]
    for i, output in enumerate(outputs):
        assert output.token_ids == generate_alone(path, prompt_for(i, 40), 120)


async def test_a_client_that_goes_away_frees_everything_and_disturbs_nobody(pool, model_paths):
    async with pool(2) as running:
        stays = asyncio.create_task(running.generate("stays", "m0", prompt_for(0), 200))
        leaves = asyncio.create_task(running.generate("leaves", "m1", prompt_for(1), 400))
        while not any(state.running for _, state in running.frontend.node_states()):
            await asyncio.sleep(0.005)
        leaves.cancel()
        output = await stays
        await running.settled()
    assert output.token_ids == generate_alone(model_paths(1)["m0"], prompt_for(0), 200)


async def test_a_stop_string_ends_the_output_and_is_not_part_of_it(pool):
    async with pool(1) as running:
        free = await running.generate("free", "m0", "once upon a time", 60)
        stop = free.text[20:24]
        stopped = await running.generate("stopped", "m0", "once upon a time", 60, stop=(stop,))
        await running.settled()
    assert stopped.text == free.text[: free.text.index(stop)]
    assert stopped.finish_reason is FinishReason.STOP


async def test_a_seed_gives_the_same_output_whatever_else_runs(pool):
    sampling = {"temperature": 1.0, "top_p": 0.95, "seed": 7}
    async with pool(3, instances=SPLIT) as running:
        alone = await running.generate("alone", "m0", prompt_for(0), 40, **sampling)
        crowd = [running.generate(f"c{i}", f"m{i % 3}", prompt_for(i), 40, temperature=1.0) for i in range(9)]
        amid, *_ = await asyncio.gather(running.generate("amid", "m0", prompt_for(0), 40, **sampling), *crowd)
        other = await running.generate("other", "m0", prompt_for(0), 40, **{**sampling, "seed": 8})
    assert amid.token_ids == alone.token_ids
    assert other.token_ids != alone.token_ids


async def test_what_does_not_fit_is_refused_with_numbers(pool):
    async with pool(1, kv_cache_bytes=32 << 10, slab_bytes=16 << 10) as running:
        with pytest.raises(ContextLengthError, match="512"):
            await running.generate("long", "m0", prompt_for(0, 500), 100)
        with pytest.raises(ContextLengthError, match="KV"):
            await running.generate("large", "m0", prompt_for(0, 100), 300)
        with pytest.raises(PromptError, match="vocabulary"):
            await running.generate("strange", "m0", (5, 100_000), 4)
        with pytest.raises(UnknownModelError, match="m0"):
            await running.generate("unknown", "m9", prompt_for(0), 4)
        assert len((await running.generate("fine", "m0", prompt_for(0), 4)).token_ids) == 4


async def test_a_model_that_breaks_after_the_start_fails_alone(pool, model_paths, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(model_paths(1)["m0"], broken)
    async with pool(1, extra={"broken": broken}) as running:
        with (broken / "model.safetensors").open("r+b") as file:
            file.truncate(1000)
        with pytest.raises(ModelUnavailableError, match="broken"):
            await running.generate("bad", "broken", prompt_for(0), 4)
        assert len((await running.generate("good", "m0", prompt_for(0), 4)).token_ids) == 4
        failures = {card.name: card.failure for card in running.frontend.models()}
        assert failures["m0"] is None
        assert "model.safetensors" in failures["broken"]


async def test_the_log_of_a_real_run_replays(pool, tmp_path):
    log = tmp_path / "events.jsonl"
    async with pool(3, event_log=log, instances=SPLIT) as running:
        await asyncio.gather(*(running.generate(f"r{i}", f"m{i % 3}", prompt_for(i), 16) for i in range(9)))
        fresh = running.node.make_scheduler()
    entries = [decode(line) for line in log.read_text().splitlines()]
    assert len(entries) > 30
    assert replay(entries, fresh) is None
