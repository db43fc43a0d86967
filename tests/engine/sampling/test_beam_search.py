"""Beam search finds what Transformers' own generate() finds, token for token."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from aegaeon.core.beams import Beam, BeamState
from aegaeon.core.sampling import BeamParams, SamplingParams
from aegaeon.engine.sampling.beam_search import BeamSearch
from aegaeon.engine.sampling.chooser import likeliest

EOS, STOP = 3, 5


@cache
def model(vocabulary: int) -> Any:
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.4,
    )
    return AutoModelForCausalLM.from_config(config).eval()


def generated(
    vocabulary: int, prompt: list[int], beams: BeamParams, enders: list[int], **limits: int
) -> list[list[int]]:
    ids = torch.tensor([prompt])
    rows = model(vocabulary).generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        num_beams=beams.width,
        num_return_sequences=beams.returned,
        length_penalty=beams.length_penalty,
        early_stopping=beams.early_stopping,
        eos_token_id=enders or None,
        pad_token_id=vocabulary - 1,
        **limits,
    )
    return [cut(row[len(prompt) :], enders) for row in rows.tolist()]


def cut(tokens: list[int], enders: list[int]) -> list[int]:
    """Without what fills it up."""
    return tokens[: next((at + 1 for at, token in enumerate(tokens) if token in enders), len(tokens))]


@torch.inference_mode()
def searched(vocabulary: int, prompt: list[int], beams: BeamParams, params: SamplingParams) -> list[list[int]]:
    search = BeamSearch(params, beams, (EOS,), BeamState((Beam(),)))
    while not search.over:
        rows = torch.tensor([[*prompt, *beam.token_ids] for beam in search.beams])
        chosen = likeliest(model(vocabulary)(rows).logits[:, -1], [search.wish] * len(rows))
        search.step([one for one in chosen if one is not None])
    return [list(one.token_ids) for one in search.outputs]


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [-0.7, 1.0, 2.3])
@pytest.mark.parametrize(("width", "vocabulary"), [(2, 12), (4, 24), (6, 12), (8, 200)])
def test_it_finds_what_generate_finds(width: int, vocabulary: int, length_penalty: float, early_stopping: Any) -> None:
    lengths = set()
    for number in range(2):
        prompt = torch.randint(0, vocabulary, (5,), generator=torch.Generator().manual_seed(number)).tolist()
        beams = BeamParams(width, 1 + number % width, length_penalty, early_stopping)
        found = searched(vocabulary, prompt, beams, SamplingParams(max_new_tokens=14))
        assert found == generated(vocabulary, prompt, beams, [EOS], max_new_tokens=14)
        assert len(found) == beams.returned
        lengths |= set(map(len, found))
    assert vocabulary > 100 or length_penalty > 0 or len(lengths) > 1


def test_ends_and_limits_are_those_of_the_request() -> None:
    beams = BeamParams(4, 4)
    for prompt in ([1, 2], [9, 8, 7], [4]):
        several = SamplingParams(max_new_tokens=12, stop_token_ids=(STOP,))
        assert searched(12, prompt, beams, several) == generated(12, prompt, beams, [EOS, STOP], max_new_tokens=12)
        none = SamplingParams(max_new_tokens=12, ignore_eos=True)
        assert searched(12, prompt, beams, none) == generated(12, prompt, beams, [], max_new_tokens=12)
        late = SamplingParams(max_new_tokens=12, min_new_tokens=5)
        wanted = generated(12, prompt, beams, [EOS], max_new_tokens=12, min_new_tokens=5)
        assert searched(12, prompt, beams, late) == wanted
        assert min(map(len, wanted)) > 5
        wide = BeamParams(16, 16, 0.0)
        assert searched(24, prompt, wide, several) == generated(24, prompt, wide, [EOS, STOP], max_new_tokens=12)
        one = SamplingParams(max_new_tokens=1)
        assert searched(12, prompt, beams, one) == generated(12, prompt, beams, [EOS], max_new_tokens=1)


def test_it_goes_on_from_where_it_was() -> None:
    params, beams = SamplingParams(max_new_tokens=12), BeamParams(4, 4)
    state, over = BeamState((Beam(),)), False
    while not over:
        search = BeamSearch(params, beams, (EOS,), state)
        with torch.inference_mode():
            rows = torch.tensor([[1, 2, *beam.token_ids] for beam in search.beams])
            chosen = likeliest(model(12)(rows).logits[:, -1], [search.wish] * len(rows))
        search.step([one for one in chosen if one is not None])
        state, over = BeamState(search.beams, search.finished), search.over
    assert [list(one.token_ids) for one in search.outputs] == generated(12, [1, 2], beams, [EOS], max_new_tokens=12)
