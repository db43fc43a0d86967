"""Sampling as devices do it: the tokens that the CPU's sampler chooses, without looking at a value on the way."""

from __future__ import annotations

import random

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from aegaeon.core.sampling import SamplingParams
from aegaeon.engine.sampling.device_sampler import DeviceSampler, DrawRows, draw
from aegaeon.engine.sampling.sampler import Sampler
from aegaeon.engine.sampling.sampling_state import SamplingState

VOCAB = 500


def states_of(count: int, seed: int) -> list[SamplingState]:
    """Requests that have nothing in common."""
    rng = random.Random(seed)
    states = []
    for index in range(count):
        params = SamplingParams(
            max_new_tokens=40,
            temperature=rng.choice([0.0, 0.3, 1.0, 2.0]),
            top_k=rng.choice([0, 0, 1, 7, 40, 400]),
            top_p=rng.choice([1.0, 0.1, 0.9, 0.999]),
            min_p=rng.choice([0.0, 0.0, 0.05]),
            repetition_penalty=rng.choice([1.0, 1.3]),
            presence_penalty=rng.choice([0.0, 0.5]),
            frequency_penalty=rng.choice([0.0, -0.5]),
            seed=index,
            min_new_tokens=rng.choice([0, 20]),
        )
        generated = [rng.randrange(VOCAB) for _ in range(rng.randrange(12))]
        states.append(SamplingState(params, [1, 2, 3], generated, [0]))
    return states


@pytest.mark.parametrize("window_tokens", [8, 64, 1000])
@pytest.mark.parametrize("scale", [0.01, 1.0, 8.0])
def test_every_request_gets_the_token_that_the_cpu_chooses(window_tokens: int, scale: float) -> None:
    states = states_of(120, seed=int(scale * 100))
    logits = torch.randn(120, VOCAB, generator=torch.Generator().manual_seed(0)) * scale
    before = logits.clone()
    chosen = DeviceSampler(window_tokens).sample(logits, states)
    assert chosen == Sampler(window_tokens).sample(logits, states)
    assert torch.equal(logits, before)
    assert len(set(chosen)) > 20


def test_a_batch_does_not_change_a_request() -> None:
    states = states_of(24, seed=5)
    logits = torch.randn(24, VOCAB, generator=torch.Generator().manual_seed(1))
    together = DeviceSampler().sample(logits, states)
    alone = [DeviceSampler().sample(logits[row : row + 1], states[row : row + 1])[0] for row in range(24)]
    assert together == alone


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_half_precision_logits(temperature: float) -> None:
    logits = torch.randn(4, VOCAB, generator=torch.Generator().manual_seed(2)).bfloat16()
    states = [SamplingState(SamplingParams(temperature=temperature, top_p=0.8, seed=row)) for row in range(4)]
    assert DeviceSampler().sample(logits, states) == Sampler().sample(logits, states)


def test_rows_and_requests_must_match() -> None:
    with pytest.raises(ValueError, match="2 rows of logits for 1 requests"):
        DeviceSampler().sample(torch.zeros(2, VOCAB), states_of(1, 0))


def test_the_draw_looks_at_no_value() -> None:
    rows = DrawRows.of(states_of(16, seed=3), 64, torch.device("cpu"))
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert draw(torch.empty(16, VOCAB), rows, 64).shape == (2, 16)
