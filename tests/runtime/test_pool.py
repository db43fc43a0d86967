"""A pool end to end, within one process: real scheduler, driver, instances, engine, frontend, links."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from aegaeon.core.config import InstanceConfig
from aegaeon.core.generation import FinishReason
from aegaeon.core.instance import Role

SPLIT = (InstanceConfig(Role.PREFILL, 1), InstanceConfig(Role.DECODE, 2))


def prompt_for(index: int, tokens: int = 20) -> tuple[int, ...]:
    return tuple(torch.randint(6, 300, (tokens,), generator=torch.Generator().manual_seed(index)).tolist())


def generate_alone(path: Path, prompt: tuple[int, ...], new_tokens: int) -> tuple[int, ...]:
    """What Hugging Face's own generate() gives."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    ids = torch.tensor([prompt])
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return tuple(output[0, len(prompt) :].tolist())


@pytest.mark.parametrize("mode", ["one mixed instance", "split roles", "copying"])
async def test_many_models_answer_as_each_would_alone(pool, model_paths, mode):
    names = [f"m{i}" for i in range(6)]
    options = {
        "one mixed instance": {},
        "split roles": {"instances": SPLIT},
        "copying": {"copy_to_device": True, "device_bytes": 24 << 20, "resident_models": 2, "instances": SPLIT},
    }[mode]
    async with pool(6, **options) as running:
        outputs = await asyncio.gather(*(running.generate(f"r{i}", names[i % 6], prompt_for(i), 24) for i in range(12)))
        await running.settled()
    paths = model_paths(6)
    for i, output in enumerate(outputs):
        assert output.token_ids == generate_alone(paths[names[i % 6]], prompt_for(i), 24)
        assert output.finish_reason is FinishReason.LENGTH
