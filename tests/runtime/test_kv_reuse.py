"""KV that is found again: answers are those of Hugging Face's own generate(), and less is computed."""

from __future__ import annotations

import asyncio

import pytest

from aegaeon.core.config import InstanceConfig, KvDiskConfig
from aegaeon.core.instance import Role
from aegaeon.runtime.node import node
from tests.runtime.test_pool import generate_alone, prompt_for
from tests.worlds.served import WAIT_S

SPLIT = (InstanceConfig(Role.PREFILL, 1), InstanceConfig(Role.DECODE, 2))
COPYING = {"copy_to_device": True, "device_bytes": 24 << 20, "resident_models": 2, "instances": SPLIT}
MODES = {
    "in place": {},
    "split roles": {"instances": SPLIT},
    "copying": COPYING,
    "copies that land late": {"device": "lazy", **COPYING},
}


def whole(tokens: int) -> int:
    """Tokens of whole blocks, the last token being fed again."""
    return (tokens - 1) // 16 * 16


@pytest.mark.parametrize(
    ("mode", "policy"),
    [*((mode, "slack") for mode in MODES), ("split roles", "aegaeon"), ("copying", "aegaeon"), ("in place", "sllm")],
)
async def test_conversations_of_several_models_go_on_from_their_kv(pool, model_paths, mode, policy):
    async with pool(3, policy=policy, **MODES[mode]) as running:
        texts = {f"m{index}": prompt_for(index, 37) for index in range(3)}
        for turn in range(3):
            outputs = await asyncio.gather(
                *(running.generate(f"{name} {turn}", name, text, 21) for name, text in texts.items())
            )
            for (name, text), output in zip(texts.items(), outputs, strict=True):
                assert output.token_ids == generate_alone(model_paths(3)[name], text, 21)
                before = len(text) - 5 if turn else 0
                if mode in ("in place", "split roles"):
                    assert output.cached_tokens == max(0, whole(before))
                else:  # what had not landed when the request ended is not kept
                    assert output.cached_tokens <= max(0, whole(before))
                    assert output.cached_tokens >= 32 * (turn > 0)
                texts[name] = (*text, *output.token_ids, *prompt_for(turn, 5))
            await running.settled()


@pytest.mark.parametrize("mode", ["in place", "copying", "copies that land late"])
async def test_kv_on_disk_is_found_when_everything_was_started_anew(pool, model_paths, tmp_path, monkeypatch, mode):
    monkeypatch.setattr(node, "saved_s", lambda _costs, _model, start, end: (end - start) * 10.0)  # never too late
    prompt, disk = prompt_for(5, 100), KvDiskConfig(tmp_path / "kv", 64 << 20)
    for least in (0, 96 if mode == "in place" else 32):  # what had not landed when the request ended is not kept
        async with pool(2, **MODES[mode], kv_disk=disk, check=True) as running:
            async with asyncio.timeout(WAIT_S):
                while not (state := running.frontend.node_states()[0][1]).disk:
                    await asyncio.sleep(0.01)
            output = await running.generate("r", "m0", prompt, 24)
            assert output.token_ids == generate_alone(model_paths(2)["m0"], prompt, 24)
            assert least <= output.cached_tokens <= 96 * bool(least)
            await running.generate("other", "m1", prompt, 4)
            await running.settled()
            async with asyncio.timeout(WAIT_S):
                while state.disk.blocks * state.kv.kept_bytes == 0 or state.disk.used_bytes < state.kv.kept_bytes:
                    await asyncio.sleep(0.01)
                    ((_, state),) = running.frontend.node_states()
    assert state.disk.read_tokens >= least
    assert state.disk.hits == 2


async def test_models_and_salts_keep_their_kv_apart(pool, model_paths):
    async with pool(2) as running:
        prompt = prompt_for(7, 40)
        for index, (model, salt, cached) in enumerate(
            (("m0", "", 0), ("m1", "", 0), ("m0", "a", 0), ("m0", "a", 32), ("m0", "", 32), ("m1", "b", 0))
        ):
            output = await running.generate(f"r{index}", model, prompt, 6, salt)
            assert output.cached_tokens == cached
            assert output.token_ids == generate_alone(model_paths(2)[model], prompt, 6)


@pytest.mark.parametrize("mode", ["in place", "copying"])
async def test_choices_of_a_prompt_compute_it_once(pool, model_paths, mode):
    async with pool(2, **MODES[mode]) as running:
        prompt = prompt_for(3, 100)
        other = asyncio.create_task(running.generate("other", "m1", prompt_for(4), 60))
        first = await running.submit("c0", "m0", prompt, 20)
        rest = [await running.submit(f"c{index}", "m0", prompt, 20, first=first) for index in range(1, 5)]
        outputs = await asyncio.gather(*(running.collect(one) for one in (first, *rest)))
        await other
        await running.settled()
    expected = generate_alone(model_paths(1)["m0"], prompt, 20)
    assert [output.token_ids for output in outputs] == [expected] * 5
    assert outputs[0].cached_tokens == 0
    if mode == "in place":
        assert [output.cached_tokens for output in outputs[1:]] == [99] * 4


async def test_a_choice_that_comes_when_the_first_has_begun_copies_its_last_block_too(pool, model_paths):
    async with pool(1) as running:
        prompt = prompt_for(3, 100)
        first = await running.submit("c0", "m0", prompt, 60)
        deltas = aiter(first)
        await anext(deltas)
        output = await running.generate("c1", "m0", prompt, 20, first=first)
        async for _ in deltas:
            pass
        await running.settled()
    assert output.token_ids == generate_alone(model_paths(1)["m0"], prompt, 20)
    assert output.cached_tokens == 99


@pytest.mark.parametrize("mode", MODES)
async def test_a_part_of_a_block_before_a_branch_is_copied(pool, model_paths, mode):
    async with pool(1, **MODES[mode]) as running:
        prompts = [(*prompt_for(5, 41), *prompt_for(index, 23)) for index in range(4)]
        for index, prompt in enumerate(prompts):
            output = await running.generate(f"r{index}", "m0", prompt, 20)
            assert output.token_ids == generate_alone(model_paths(1)["m0"], prompt, 20)
            assert output.cached_tokens == (41 if index else 0)
        again = await running.generate("again", "m0", prompts[1][:50], 20)
        assert again.token_ids == generate_alone(model_paths(1)["m0"], prompts[1][:50], 20)
        assert again.cached_tokens >= 48
        await running.settled()


async def test_choices_go_on_alone_when_the_first_is_cancelled(pool, model_paths):
    async with pool(1) as running:
        prompt = prompt_for(3, 100)
        first = await running.submit("c0", "m0", prompt, 20)
        second = await running.submit("c1", "m0", prompt, 20, first=first)
        third = await running.submit("c2", "m0", prompt, 20, first=first)
        await third.cancel()
        await first.cancel()
        output = await running.collect(second)
        await running.settled()
    assert output.token_ids == generate_alone(model_paths(1)["m0"], prompt, 20)


@pytest.mark.parametrize("prefix_cache", ["lru", "lfu", "slo", "off"])
async def test_what_is_kept_gives_way_to_whoever_runs(pool, model_paths, prefix_cache):
    options = {"kv_cache_bytes": 128 << 10, "slab_bytes": 16 << 10, "prefill_chunk_tokens": 32, "check": True}
    async with pool(("m0",), prefix_cache=prefix_cache, **options) as running:
        for round_ in range(2):
            asked = (running.generate(f"r{round_} {i}", "m0", prompt_for(i, 40), 60) for i in range(6))
            outputs = await asyncio.gather(*asked)
            for index, output in enumerate(outputs):
                assert output.token_ids == generate_alone(model_paths(1)["m0"], prompt_for(index, 40), 60)
        await running.settled()
        ((_, state),) = running.frontend.node_states()
        assert (state.kv.kept_bytes == 0) == (prefix_cache == "off")
        assert (state.kv.evicted_blocks == 0) == (prefix_cache == "off")
