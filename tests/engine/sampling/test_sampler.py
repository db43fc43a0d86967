"""The sampler against a plain reference: one row at a time, Python numbers, everything sorted."""

from __future__ import annotations

import dataclasses
import math
import random
from collections import Counter
from hashlib import blake2b
from itertools import pairwise

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from aegaeon.core.sampling import SamplingParams
from aegaeon.engine.sampling.device_sampler import DeviceSampler
from aegaeon.engine.sampling.sampler import Sampler
from aegaeon.engine.sampling.sampling_state import SamplingState

WORD = (1 << 64) - 1


def reference_noise(seed: int, draw: int, token: int) -> float:
    """Gumbel noise of a token, by the definition: output ``token`` of SplitMix64 seeded with hash(seed, draw)."""
    words = seed.to_bytes(8, "little", signed=True) + draw.to_bytes(8, "little")
    z = int.from_bytes(blake2b(words, digest_size=8).digest(), "little")
    z = (z + (token + 1) * 0x9E3779B97F4A7C15) & WORD
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD
    z ^= z >> 31
    return -math.log(-math.log1p(-((z >> 1) + 0.5) / 2**63))


def reference_logits(row: list[float], p: SamplingParams, prompt: list[int], made: list[int], eos: list[int]):
    logits, counts = list(row), Counter(made)
    for token in set(prompt) | set(made):
        logits[token] = (
            logits[token] / p.repetition_penalty if logits[token] > 0 else logits[token] * p.repetition_penalty
        )
    for token, count in counts.items():
        logits[token] -= p.frequency_penalty * count + p.presence_penalty
    if len(made) < p.min_new_tokens:
        for token in {*eos, *p.stop_token_ids}:
            logits[token] = -math.inf
    return logits


def softmax(logits: dict[int, float]) -> dict[int, float]:
    top = max(logits.values())
    weights = {token: math.exp(logit - top) for token, logit in logits.items()}
    total = math.fsum(weights.values())
    return {token: weight / total for token, weight in weights.items()}


def reference_candidates(logits: list[float], p: SamplingParams) -> dict[int, float]:
    """The logits, after temperature, of the tokens that top-k, top-p and min-p leave; ties at an edge stay."""
    left = {token: logit / p.temperature for token, logit in enumerate(logits)}
    if p.top_k:
        least = sorted(left.values(), reverse=True)[: p.top_k][-1]
        left = {token: logit for token, logit in left.items() if logit >= least}
    if p.top_p < 1.0:
        mass, edge, probabilities = 0.0, math.inf, softmax(left)
        for token in sorted(left, key=left.__getitem__, reverse=True):
            if mass >= p.top_p:
                break
            mass, edge = mass + probabilities[token], left[token]
        left = {token: logit for token, logit in left.items() if logit >= edge}
    top = max(left.values())
    return {token: logit for token, logit in left.items() if logit - top >= math.log(p.min_p or 1e-300)}


def reference_sample(row: list[float], p: SamplingParams, prompt: list[int], made: list[int], eos: list[int]) -> int:
    logits = reference_logits(row, p, prompt, made, eos)
    if p.greedy:
        return max(range(len(logits)), key=lambda token: (logits[token], -token))
    left = reference_candidates(logits, p)
    return max(left, key=lambda token: left[token] + reference_noise(p.seed, len(made), token))


VARIED = [
    {},
    {"temperature": 0.0},
    {"temperature": 0.0, "repetition_penalty": 1.7, "presence_penalty": 0.5, "frequency_penalty": 0.3},
    {"temperature": 0.3},
    {"top_k": 1},
    {"top_k": 7, "top_p": 0.6},
    {"top_k": 400, "top_p": 0.9},
    {"top_k": 5000},
    {"top_p": 0.01},
    {"top_p": 0.8},
    {"top_p": 0.999},
    {"min_p": 0.02},
    {"min_p": 1.0},
    {"temperature": 1.7, "top_k": 100, "top_p": 0.95, "min_p": 0.001},
    {"repetition_penalty": 0.6, "frequency_penalty": -1.0, "top_p": 0.9},
    {"min_new_tokens": 5, "stop_token_ids": (3, 4), "top_k": 3},
    {"temperature": 0.0, "min_new_tokens": 5},
]


def make_case(rng: random.Random, index: int, vocab: int):
    """(params, prompt, generated, eos) of a request."""
    params = SamplingParams(max_new_tokens=64, seed=rng.randrange(-(2**63), 2**63), **VARIED[index % len(VARIED)])
    prompt = [rng.randrange(vocab) for _ in range(rng.randrange(1, 40))]
    made = [rng.randrange(vocab) for _ in range(rng.randrange(0, 10))]
    return params, prompt, made, [1, 2]


@pytest.mark.parametrize("spread", [0.3, 3.0, 10.0], ids=["flat", "usual", "peaked"])
@pytest.mark.parametrize("vocab", [40, 700])
def test_tokens_equal_the_plain_reference(vocab: int, spread: float) -> None:
    rng = random.Random(f"{vocab} {spread}")
    torch.manual_seed(vocab)
    cases = [make_case(rng, index, vocab) for index in range(3 * len(VARIED))]
    logits = torch.randn(len(cases), vocab) * spread
    expected = [reference_sample(row, *case) for row, case in zip(logits.tolist(), cases, strict=True)]
    before = logits.clone()
    assert Sampler(window_tokens=64).sample(logits, [SamplingState(*case) for case in cases]) == expected
    assert torch.equal(logits, before)


def test_a_token_does_not_depend_on_window_chunks_or_batch() -> None:
    rng = random.Random(5)
    torch.manual_seed(5)
    cases = [make_case(rng, index, 500) for index in range(2 * len(VARIED))]
    logits = (torch.randn(len(cases), 500) * 3).bfloat16()

    def sample(sampler: Sampler, rows: list[int]) -> list[int]:
        return sampler.sample(logits[rows], [SamplingState(*cases[row]) for row in rows])

    rows = list(range(len(cases)))
    together = sample(Sampler(), rows)
    for sampler in (Sampler(window_tokens=1), Sampler(window_tokens=17, chunk_logits=1), Sampler(window_tokens=500)):
        assert sample(sampler, rows) == together
    assert [sample(Sampler(), [row])[0] for row in rows] == together
    rng.shuffle(rows)
    assert sample(Sampler(), rows) == [together[row] for row in rows]


def test_greedy_takes_the_lowest_of_tied_tokens_like_argmax() -> None:
    logits = torch.zeros(3, 50, dtype=torch.bfloat16)
    logits[1, [7, 30]] = 2.0
    logits[2, [49]] = 0.5
    plain = [SamplingState(SamplingParams(temperature=0.0)) for _ in range(3)]
    assert Sampler().sample(logits, plain) == [0, 7, 49] == logits.argmax(-1).tolist()
    edited = SamplingState(SamplingParams(temperature=0.0, presence_penalty=1.0), generated=[40])
    assert Sampler().sample(logits, [plain[0], edited, plain[2]]) == [0, 7, 49]


def test_ties_at_the_edge_of_top_k_stay_candidates_however_many_they_are() -> None:
    logits = torch.zeros(600, 300)
    states = [SamplingState(SamplingParams(top_k=2, seed=seed)) for seed in range(600)]
    tokens = Sampler(window_tokens=8).sample(logits, states)
    assert min(tokens) < 30
    assert max(tokens) > 270


@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 0.5}, {"top_k": 5}, {"top_p": 0.7}, {"min_p": 0.2}], ids=lambda s: str(s) or "free"
)
def test_tokens_come_with_the_right_frequencies(settings: dict[str, float]) -> None:
    row = torch.tensor([2.0, 1.5, 1.4, 1.0, 0.5, 0.0, -0.5, -1.0, -1.5, -3.0])
    params = SamplingParams(seed=0, **settings)
    expected = softmax(reference_candidates(row.tolist(), params))
    draws = 20_000
    states = [SamplingState(dataclasses.replace(params, seed=seed)) for seed in range(draws)]
    counts = Counter(Sampler().sample(row.expand(draws, -1), states))
    assert set(counts) <= set(expected)
    chi_square = sum((counts[token] - draws * p) ** 2 / (draws * p) for token, p in expected.items())
    assert chi_square < 27.9  # 99.9 % of the distribution with 9 degrees of freedom


def test_draws_of_one_request_are_independent_of_each_other() -> None:
    params, row = SamplingParams(seed=11, max_new_tokens=10_000), torch.zeros(1, 2)
    state, sampler, tokens = SamplingState(params), Sampler(), []
    for _ in range(4000):
        tokens += sampler.sample(row, [state])
        state.append(tokens[-1])
    pairs = Counter(pairwise(tokens))
    assert all(abs(count - 1000) < 110 for count in pairs.values())
    assert len(pairs) == 4


def test_a_state_rebuilt_from_plain_data_goes_on_as_if_nothing_had_happened() -> None:
    torch.manual_seed(1)
    logits = torch.randn(30, 200) * 2
    params = SamplingParams(
        max_new_tokens=30, seed=-9, top_p=0.9, repetition_penalty=1.2, frequency_penalty=0.4, min_new_tokens=12
    )
    prompt, eos, sampler = [5, 6, 7], [8], Sampler()
    kept, made = SamplingState(params, prompt, eos_ids=eos), []
    for row in logits:
        rebuilt = SamplingState(params, prompt, made, eos)
        assert rebuilt.draws_made == kept.draws_made == len(made)
        (token,) = sampler.sample(row.unsqueeze(0), [rebuilt])
        assert sampler.sample(row.unsqueeze(0), [kept]) == [token]
        kept.append(token)
        made.append(token)


def test_repetition_counts_the_prompt_presence_and_frequency_do_not() -> None:
    logits = torch.tensor([[2.0, 1.9, 0.0, -1.0]])

    def greedy(**settings: float) -> int:
        state = SamplingState(SamplingParams(temperature=0.0, **settings), prompt_token_ids=[0, 0], generated=[3])
        return Sampler().sample(logits, [state])[0]

    assert greedy(repetition_penalty=1.1) == 1
    assert greedy(presence_penalty=2.0) == 0
    assert greedy(frequency_penalty=2.0) == 0
    assert greedy(repetition_penalty=0.01) == 0


def test_frequency_grows_with_the_count_and_presence_does_not() -> None:
    logits = torch.tensor([[3.0, 1.0]])

    def greedy(times: int, **settings: float) -> int:
        state = SamplingState(SamplingParams(temperature=0.0, **settings), generated=[0] * times)
        return Sampler().sample(logits, [state])[0]

    assert [greedy(times, frequency_penalty=0.9) for times in (1, 2, 3)] == [0, 0, 1]
    assert [greedy(times, presence_penalty=1.5) for times in (1, 2, 3)] == [0, 0, 0]


def test_end_tokens_are_forbidden_until_enough_tokens_were_made() -> None:
    logits = torch.tensor([[1.0, 9.0, 8.0, 2.0]])
    params = SamplingParams(temperature=0.0, min_new_tokens=2, stop_token_ids=(2,))
    tokens = [Sampler().sample(logits, [SamplingState(params, [0], [0] * made, [1])])[0] for made in range(4)]
    assert tokens == [3, 3, 1, 1]


def test_tiny_temperatures_and_infinite_logits_do_no_harm() -> None:
    logits = torch.tensor([[-math.inf, 1.0, 3.0, 2.0]])
    for temperature in (1e-45, 1e-6, 1e-3):
        assert Sampler().sample(logits, [SamplingState(SamplingParams(temperature=temperature, seed=1))]) == [2]
    seen = {Sampler().sample(logits, [SamplingState(SamplingParams(temperature=2.0, seed=s))])[0] for s in range(99)}
    assert seen == {1, 2, 3}


EVERY_WAY = [
    {"temperature": 0.0},
    {"temperature": 0.0, "presence_penalty": 0.5},
    {"temperature": 1.0},
    {"top_p": 0.9},
    {"top_k": 3, "min_p": 0.1},
    {"top_k": 400},
]


@pytest.mark.parametrize("sampler", [Sampler(), Sampler(window_tokens=8), DeviceSampler(), DeviceSampler(8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_that_are_not_finite_have_no_token_and_touch_no_other(sampler, dtype) -> None:
    for settings in EVERY_WAY:
        logits = torch.randn(6, 600, generator=torch.Generator().manual_seed(4)).to(dtype)
        states = [SamplingState(SamplingParams(seed=row, **settings), generated=[3]) for row in range(6)]
        before = sampler.sample(logits, states)
        logits[0, 77] = math.nan
        logits[2] = math.nan
        logits[3, 599] = math.inf
        logits[4] = -math.inf
        assert sampler.sample(logits, states) == [None, before[1], None, None, None, before[5]], settings
        assert sampler.sample(logits[[0, 2, 3, 4]], [states[row] for row in (0, 2, 3, 4)]) == [None] * 4


@pytest.mark.parametrize("sampler", [Sampler(), DeviceSampler()])
@pytest.mark.parametrize("settings", EVERY_WAY, ids=str)
def test_logits_that_forbid_a_token_are_fine(sampler, settings) -> None:
    logits = torch.full((1, 600), -math.inf)
    logits[0, 7] = -1e30
    assert sampler.sample(logits, [SamplingState(SamplingParams(seed=1, **settings))]) == [7]


@pytest.mark.parametrize("sampler", [Sampler(), DeviceSampler()])
def test_when_every_token_is_forbidden_there_is_none(sampler) -> None:
    for settings in EVERY_WAY:
        params = SamplingParams(seed=1, min_new_tokens=1, stop_token_ids=tuple(range(50)), **settings)
        assert sampler.sample(torch.zeros(1, 50), [SamplingState(params)]) == [None]


@pytest.mark.parametrize("sampler", [Sampler(), DeviceSampler()])
def test_ids_without_a_logit_change_nothing(sampler) -> None:
    """End and stop tokens, prompts and outputs may name ids that the model has not: beyond its logits, or negative."""
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(5))
    outside = (50, 51, 10**6, 2**40, -1, -50)
    for settings in ({}, {"repetition_penalty": 1.5}, {"presence_penalty": 1.0, "frequency_penalty": 0.5}):
        for ways in EVERY_WAY:
            params = SamplingParams(max_new_tokens=30, seed=1, **{**ways, **settings})
            strange = dataclasses.replace(params, min_new_tokens=20, stop_token_ids=outside)
            expected = sampler.sample(logits, [SamplingState(params, [3, 4], [5, 6])])
            assert sampler.sample(logits, [SamplingState(strange, [3, 4], [5, 6], outside)]) == expected
            with_strangers = SamplingState(params, [3, *outside, 4], [5, 6])
            assert sampler.sample(logits, [with_strangers]) == expected


@pytest.mark.parametrize("sampler", [Sampler(), DeviceSampler()])
def test_a_top_k_beyond_the_vocabulary_limits_nothing(sampler) -> None:
    logits = torch.randn(40, 50, generator=torch.Generator().manual_seed(6))

    def sample(top_k: int) -> list[int | None]:
        return sampler.sample(logits, [SamplingState(SamplingParams(top_k=top_k, seed=row)) for row in range(40)])

    assert sample(50) == sample(51) == sample(2**31) == sample(0)


def test_a_random_request_without_a_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a seed"):
        SamplingState(SamplingParams(temperature=1.0))


def test_rows_and_requests_must_agree() -> None:
    with pytest.raises(ValueError, match="2 rows of logits for 1 requests"):
        Sampler().sample(torch.zeros(2, 5), [SamplingState(SamplingParams(temperature=0.0))])
    with pytest.raises(ValueError, match="must be positive"):
        Sampler(window_tokens=0)


def test_candidates_are_those_of_hugging_face() -> None:
    torch.manual_seed(3)
    row = torch.randn(1, 30) * 2
    chain = LogitsProcessorList(
        [TemperatureLogitsWarper(1.5), TopKLogitsWarper(12), TopPLogitsWarper(0.9), MinPLogitsWarper(0.08)]
    )
    expected = chain(torch.zeros(1, 1, dtype=torch.long), row.clone()).isfinite().nonzero()[:, 1].tolist()
    params = SamplingParams(temperature=1.5, top_k=12, top_p=0.9, min_p=0.08, seed=0)
    states = [SamplingState(dataclasses.replace(params, seed=seed)) for seed in range(3000)]
    assert sorted(set(Sampler().sample(row.expand(3000, -1), states))) == expected
