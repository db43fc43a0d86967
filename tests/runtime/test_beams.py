"""Several outputs of one request: searches find what Hugging Face's own generate() finds, scores are the model's."""

from __future__ import annotations

import asyncio
from functools import cache
from pathlib import Path

import pytest
import torch

from aegaeon.core.generation import FieldError, Generation
from aegaeon.core.sampling import BeamParams
from aegaeon.runtime.instance.core.turn import Turn
from aegaeon.runtime.node.node_kv import NodeKv
from tests.runtime.test_kv_reuse import COPYING, MODES, SPLIT
from tests.runtime.test_pool import _alone, generate_alone, prompt_for
from tests.worlds.in_process_pool import InProcessPool

pytestmark = pytest.mark.slow

Outputs = list[tuple[int, ...]]


@cache
def search_alone(path: Path, prompt: tuple[int, ...], beams: BeamParams, new_tokens: int, eos: bool = False) -> Outputs:
    """What Hugging Face's own generate() gives."""
    ids, model = torch.tensor([prompt]), _alone(path)
    eos_id = model.config.eos_token_id if eos else None
    rows = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new_tokens,
        do_sample=False,
        num_beams=beams.width,
        num_return_sequences=beams.returned,
        length_penalty=beams.length_penalty,
        early_stopping=beams.early_stopping,
        eos_token_id=eos_id,
        pad_token_id=0,
    )[:, len(prompt) :].tolist()
    ends = [row.index(eos_id) + 1 if eos_id in row else len(row) for row in rows]
    return [tuple(row[:end]) for row, end in zip(rows, ends, strict=True)]


async def outputs_of(generation: Generation) -> Outputs:
    """The outputs of a search, the best one first."""
    outputs = []
    async for delta in generation:
        assert delta.finish_reason is not None
        outputs.append(delta.token_ids)
    assert generation.completion_tokens == sum(map(len, outputs))
    return outputs


async def search(
    running: InProcessPool, name: str, model: str, prompt: tuple[int, ...], beams: BeamParams, tokens: int
) -> Outputs:
    return await outputs_of(await running.submit(name, model, prompt, tokens, beams=beams))


@pytest.mark.parametrize(
    ("mode", "policy"),
    [*((mode, "slack") for mode in MODES), ("split roles", "aegaeon"), ("copying", "aegaeon"), ("in place", "sllm")],
)
async def test_searches_of_several_models_find_what_generate_finds(pool, model_paths, mode, policy):
    asked = [
        (f"m{number % 3}", prompt_for(number, tokens), BeamParams(width, returned, penalty, early))
        for number, (tokens, width, returned, penalty, early) in enumerate(
            [(20, 2, 2, 1.0, False), (37, 4, 1, 1.0, False), (32, 6, 6, 0.3, True), (5, 8, 3, -0.5, "never")]
        )
    ]
    async with pool(3, policy=policy, check=True, **MODES[mode]) as running:
        plain = asyncio.create_task(running.generate("plain", "m0", prompt_for(9), 40))
        searches = (search(running, f"s{i}", *one, 30) for i, one in enumerate(asked))
        found = await asyncio.gather(*searches)
        output = await plain
        await running.settled()
    paths = model_paths(3)
    assert found == [search_alone(paths[model], prompt, beams, 30) for model, prompt, beams in asked]
    assert output.token_ids == generate_alone(paths["m0"], prompt_for(9), 40)


@pytest.mark.parametrize("mode", MODES)
async def test_searches_go_on_where_turns_end_after_every_step(pool, model_paths, monkeypatch, mode):
    monkeypatch.setattr(Turn, "out_of_quota", lambda turn, now_s: turn._quota_from_s is not None)
    asked = [(f"m{index}", prompt_for(index, 30 + index), BeamParams(2 + index, 2)) for index in range(3)]
    async with pool(3, policy="slack", check=True, **MODES[mode]) as running:
        plain = asyncio.create_task(running.generate("plain", "m1", prompt_for(9), 20))
        found = await asyncio.gather(*(search(running, f"s{i}", *one, 20) for i, one in enumerate(asked)))
        output = await plain
        await running.settled()
    paths = model_paths(3)
    assert found == [search_alone(paths[model], prompt, beams, 20) for model, prompt, beams in asked]
    assert output.token_ids == generate_alone(paths["m1"], prompt_for(9), 20)


@pytest.mark.parametrize("copying", [False, True])
async def test_searches_that_find_no_room_wait_or_are_recomputed(pool, model_paths, copying):
    options = COPYING if copying else {"instances": SPLIT}
    beams, path = BeamParams(4, 4), model_paths(1)["m0"]
    async with pool(
        ("m0",), kv_cache_bytes=256 << 10, slab_bytes=16 << 10, prefill_chunk_tokens=32, check=True, **options
    ) as running:
        asked = (search(running, f"s{i}", "m0", prompt_for(i, 40), beams, 60) for i in range(5))
        found = await asyncio.gather(*asked)
        await running.settled()
    assert found == [search_alone(path, prompt_for(i, 40), beams, 60) for i in range(5)]


async def test_an_end_token_ends_outputs_and_the_best_ones_come_first(pool, model_paths):
    beams, path = BeamParams(6, 6, -1.0), model_paths(1)["m0"]
    async with pool(1) as running:
        for number in range(3):
            prompt = prompt_for(number, 18)
            generation = await running.submit(f"s{number}", "m0", prompt, 60, beams=beams, ignore_eos=False)
            assert await outputs_of(generation) == search_alone(path, prompt, beams, 60, eos=True)


async def test_a_search_that_no_step_has_rows_for_is_refused(pool):
    async with pool(1, max_batch_requests=4) as running:
        with pytest.raises(FieldError, match="8 beams"):
            await running.submit("wide", "m0", prompt_for(1), 8, beams=BeamParams(8, 8))
        assert len(await search(running, "fits", "m0", prompt_for(1), BeamParams(4, 4), 8)) == 4
        await running.settled()


async def test_a_search_that_is_cancelled_leaves_nothing(pool):
    async with pool(1, check=True) as running:
        generation = await running.submit("leaves", "m0", prompt_for(0), 400, beams=BeamParams(8, 8))
        while not any(state.running for _, state in running.frontend.node_states()):
            await asyncio.sleep(0.005)
        await generation.cancel()
        await running.settled()


@pytest.mark.parametrize("beams", [None, BeamParams(4, 4)])
async def test_outputs_share_the_whole_blocks_of_their_prompt(pool, monkeypatch, beams):
    tokens, output = 400 + 3, 20
    most: list[int] = []
    extend = NodeKv.extend

    def counting(kv: NodeKv, key: str, tokens: int) -> tuple[int, ...]:
        new = extend(kv, key, tokens)
        most.append(kv.counts.used_bytes // shape.block_bytes)
        return new

    monkeypatch.setattr(NodeKv, "extend", counting)
    async with pool(1) as running:
        shape = running.frontend.served["m0"].spec.kv_shape
        prompt = prompt_for(3, tokens)
        first = await running.submit("c0", "m0", prompt, output, beams=beams)
        if beams is None:
            rest = [await running.submit(f"c{index}", "m0", prompt, output, first=first) for index in range(1, 4)]
            outputs = await asyncio.gather(*(running.collect(one) for one in (first, *rest)))
            assert [one.cached_tokens for one in outputs] == [0, *[tokens - 1] * 3]
        else:
            await outputs_of(first)
        await running.settled()
    assert max(most) <= 25 + 4 * (shape.blocks_for(3 + output) + 1)


async def test_scores_are_the_models_log_probabilities(pool, model_paths):
    prompt = prompt_for(2)
    async with pool(1) as running:
        generation = await running.submit("scored", "m0", prompt, 12, scored=True, temperature=0.8, seed=3)
        deltas = [delta async for delta in generation]
    ids = [token for delta in deltas for token in delta.token_ids]
    with torch.inference_mode():
        logprobs = _alone(model_paths(1)["m0"])(torch.tensor([[*prompt, *ids]])).logits[0].log_softmax(-1)
    wanted = sum(float(logprobs[len(prompt) - 1 + place, token]) for place, token in enumerate(ids))
    assert sum(delta.logprob for delta in deltas) == pytest.approx(wanted, abs=1e-3)
