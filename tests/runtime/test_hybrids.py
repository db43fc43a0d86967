"""Models that keep states, in pools: they move, switch, are found again and recomputed as models with only KV are."""

from __future__ import annotations

import asyncio

import pytest

from aegaeon.core.config import InstanceConfig
from aegaeon.core.generation import FieldError
from aegaeon.core.instance import Role
from aegaeon.core.sampling import BeamParams
from tests.runtime.test_pool import generate_alone, prompt_for

SPLIT = (InstanceConfig(Role.PREFILL, 1), InstanceConfig(Role.DECODE, 2))
COPYING = {"copy_to_device": True, "device_bytes": 48 << 20, "resident_models": 2, "instances": SPLIT}
MODES = {
    "in place": {},
    "split roles": {"instances": SPLIT},
    "copying": COPYING,
    "copies that land late": {"device": "lazy", **COPYING},
}
SMALL_BLOCKS = {"block_tokens": 1}
"""Blocks with states of 16 to 64 tokens, so that requests have several."""


@pytest.mark.parametrize(("mode", "policy"), [*((mode, "slack") for mode in MODES), ("copying", "aegaeon")])
async def test_conversations_with_models_of_all_kinds_go_on_from_their_states(
    pool, model_paths, hybrid_paths, mode, policy
):
    paths = {**hybrid_paths, **model_paths(1)}
    async with pool(1, extra=hybrid_paths, policy=policy, **SMALL_BLOCKS, **MODES[mode]) as running:
        texts = {name: prompt_for(index, 75) for index, name in enumerate(paths)}
        for turn in range(2):
            outputs = await asyncio.gather(
                *(running.generate(f"{name} {turn}", name, text, 21) for name, text in texts.items())
            )
            for (name, text), output in zip(texts.items(), outputs, strict=True):
                assert output.token_ids == generate_alone(paths[name], text, 21)
                assert (output.cached_tokens >= 64) == (turn > 0)
                texts[name] = (*text, *output.token_ids, *prompt_for(turn, 5))
        await running.settled()


@pytest.mark.parametrize("mode", ["in place", "copying"])
async def test_states_that_are_given_up_are_computed_again(pool, hybrid_paths, mode):
    options = {**MODES[mode], **SMALL_BLOCKS, "check": True}
    async with pool((), extra={"bamba": hybrid_paths["bamba"]}, kv_cache_bytes=1 << 20, **options) as running:
        asked = (running.generate(f"r{index}", "bamba", prompt_for(index, 40), 100) for index in range(6))
        outputs = await asyncio.gather(*asked)
        await running.settled()
    for index, output in enumerate(outputs):
        assert output.token_ids == generate_alone(hybrid_paths["bamba"], prompt_for(index, 40), 100)


@pytest.mark.parametrize("mode", ["in place", "copying"])
async def test_choices_share_the_states_of_their_whole_blocks_only(pool, hybrid_paths, mode):
    prompt = prompt_for(3, 100)
    async with pool((), extra={"bamba": hybrid_paths["bamba"]}, **SMALL_BLOCKS, **MODES[mode]) as running:
        first = await running.submit("c0", "bamba", prompt, 20)
        second = await running.submit("c1", "bamba", prompt, 20, first=first)
        outputs = [await running.collect(one) for one in (first, second)]
        await running.settled()
    expected = generate_alone(hybrid_paths["bamba"], prompt, 20)
    assert [output.token_ids for output in outputs] == [expected] * 2
    assert outputs[0].cached_tokens == 0
    if mode == "in place":
        assert 0 < outputs[1].cached_tokens < 100


async def test_beams_are_refused(pool, hybrid_paths):
    async with pool((), extra={"bamba": hybrid_paths["bamba"]}) as running:
        with pytest.raises(FieldError, match="recurrent layers"):
            await running.generate("r", "bamba", prompt_for(0), 8, beams=BeamParams(2, 1))
