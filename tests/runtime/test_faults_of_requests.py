"""What goes wrong with one request, or with one model, ends that request and nobody else's: a pool in this process."""

from __future__ import annotations

import asyncio
import json
import shutil
from functools import cache
from itertools import islice, pairwise, product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from aegaeon.core.generation import EngineError, FailureCause, FieldError, PromptError
from aegaeon.core.sampling import SamplingParams
from aegaeon.engine.attention.sequence_slice import SequenceSlice
from aegaeon.engine.sampling.sampler import Sampler
from aegaeon.engine.sampling.sampling_state import SamplingState
from aegaeon.engine.step.runner import Runner
from aegaeon.runtime.instance.core.stepper import Stepper
from aegaeon.runtime.instance.core.turn_clock import TurnClock
from aegaeon.runtime.instance.in_place_kv import InPlaceKv
from aegaeon.runtime.instance.mapped_weights import MappedWeights
from aegaeon.runtime.wire.pulse import Pulse
from tests.runtime.test_pool import generate_alone, prompt_for

VOCAB = 320
POISON = 317
"""A token whose requests are broken on purpose."""


@cache
def healthy(path: Path, count: int, new_tokens: int) -> dict[tuple[int, ...], tuple[int, ...]]:
    """Prompts that never come to the poison, with their outputs."""
    outputs = ((prompt_for(index), generate_alone(path, prompt_for(index), new_tokens)) for index in range(100, 200))
    return dict(islice(((prompt, output) for prompt, output in outputs if POISON not in output), count))


def copy_of(path: Path, place: Path) -> Path:
    shutil.copytree(path, place)
    return place


# --- ids from outside -------------------------------------------------------------------------------------------------


async def test_stop_ids_outside_the_vocabulary_are_refused_by_name(pool):
    async with pool(1) as running:
        for token, least in product((VOCAB, 10**6, 2**31 - 1, -1), (0, 1)):
            with pytest.raises(FieldError, match=f"{token} is not in the model's vocabulary of {VOCAB}") as caught:
                await running.generate("bad", "m0", prompt_for(0), 4, min_new_tokens=least, stop_token_ids=(3, token))
            assert caught.value.param == "stop_token_ids"
        fine = await running.generate("fine", "m0", prompt_for(0), 4, stop_token_ids=(VOCAB - 1,), min_new_tokens=1)
        assert len(fine.token_ids) == 4


async def test_prompt_ids_outside_the_vocabulary_are_refused_by_name(pool):
    async with pool(1) as running:
        for token in (VOCAB, -1):
            with pytest.raises(PromptError, match="vocabulary") as caught:
                await running.generate("bad", "m0", (5, token), 4)
            assert caught.value.param == "prompt"


async def test_forbidding_every_token_is_refused(pool):
    async with pool(1) as running:
        everything = tuple(range(VOCAB))
        with pytest.raises(FieldError, match="leaves none") as caught:
            await running.generate("none", "m0", prompt_for(0), 4, stop_token_ids=everything, min_new_tokens=1)
        assert caught.value.param == "stop_token_ids"
        one = await running.generate("one", "m0", prompt_for(0), 4, stop_token_ids=everything)
        assert len(one.token_ids) == 1


@pytest.mark.parametrize("eos", [VOCAB, 10**6, [2, 10**6]])
async def test_an_end_of_text_beyond_the_vocabulary_never_comes(pool, model_paths, tmp_path, eos):
    strange = copy_of(model_paths(1)["m0"], tmp_path / "strange")
    (strange / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    async with pool(1, extra={"strange": strange}) as running:
        output = await running.generate("r", "strange", prompt_for(0), 6, min_new_tokens=5, presence_penalty=0.5)
        plain = await running.generate("p", "strange", prompt_for(0), 6, ignore_eos=False)
        await running.settled()
    assert len(output.token_ids) == 6
    assert plain.token_ids == generate_alone(model_paths(1)["m0"], prompt_for(0), 6)


# --- logits that are no numbers ---------------------------------------------------------------------------------------


def spoil(path: Path, tensor: str, value: float) -> None:
    weights = load_file(path / "model.safetensors")
    weights[tensor][...] = value
    save_file(weights, path / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
async def test_logits_that_are_not_finite_are_an_error_that_names_the_model(pool, model_paths, tmp_path, value):
    broken = copy_of(model_paths(1)["m0"], tmp_path / "broken")
    spoil(broken, "lm_head.weight", value)
    async with pool(1, extra={"broken": broken}) as running:
        ways = ({}, {"temperature": 1.0, "seed": 1}, {"temperature": 1.0, "top_p": 0.5}, {"presence_penalty": 1.0})
        for index, sampling in enumerate(ways):  # as often as it likes: the model stays, and so does the instance
            with pytest.raises(EngineError, match=r"model broken gave logits that are not finite") as caught:
                await running.generate(f"bad{index}", "broken", prompt_for(0), 4, **sampling)
            assert caught.value.cause is FailureCause.NOT_FINITE
        good = await running.generate("good", "m0", prompt_for(0), 4)
        assert {card.name: card.failure for card in running.frontend.models()} == {"m0": None, "broken": None}
        pids = {one.pid for _, state in running.frontend.node_states() for one in state.instances}
        await running.settled()
    assert good.token_ids == generate_alone(model_paths(1)["m0"], prompt_for(0), 4)
    assert len(pids) == 1


async def test_a_request_with_nan_does_not_touch_the_others_of_its_batch(pool, model_paths, tmp_path):
    """Only one token's embedding is NaN: whoever has it in its prompt fails."""
    broken = copy_of(model_paths(1)["m0"], tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["model.embed_tokens.weight"][POISON] = float("nan")
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    async with pool(1, extra={"broken": broken}) as running:
        expected = healthy(model_paths(1)["m0"], 4, 24)
        good = [running.generate(f"r{index}", "broken", prompt, 24) for index, prompt in enumerate(expected)]
        poisoned = running.generate("bad", "broken", (*prompt_for(9), POISON), 24)
        *outputs, failure = await asyncio.gather(*good, poisoned, return_exceptions=True)
        await running.settled()
    assert isinstance(failure, EngineError)
    assert [output.token_ids for output in outputs] == list(expected.values())


# --- errors inside a step ---------------------------------------------------------------------------------------------


def break_forward(patch: pytest.MonkeyPatch) -> None:
    """A forward pass fails with any batch that feeds the poison."""
    step = Runner.step

    def poisoned(self: Runner, slices: list[SequenceSlice], arena: object) -> torch.Tensor:
        if any(POISON in piece.token_ids for piece in slices):
            raise IndexError("index out of range in self")
        return step(self, slices, arena)

    patch.setattr(Runner, "step", poisoned)


def break_sampling(patch: pytest.MonkeyPatch) -> None:
    sample = Sampler.sample

    def poisoned(self: Sampler, logits: torch.Tensor, states: list[SamplingState]) -> list[int | None]:
        if any(state.params.seed == POISON for state in states):
            raise ZeroDivisionError("a sampler's bug")
        return sample(self, logits, states)

    patch.setattr(Sampler, "sample", poisoned)


def break_settling(patch: pytest.MonkeyPatch) -> None:
    settle = Stepper._settle

    def poisoned(self: Stepper, turn: object, feed: object) -> None:
        if feed.sequence.sampling.params.seed == POISON:
            raise KeyError("a bookkeeper's bug")
        settle(self, turn, feed)

    patch.setattr(Stepper, "_settle", poisoned)


def break_admission(patch: pytest.MonkeyPatch) -> None:
    made = SamplingState.__init__

    def poisoned(self: SamplingState, params: SamplingParams, *args: object) -> None:
        if params.seed == POISON:
            raise AttributeError("a bug at the start")
        made(self, params, *args)

    patch.setattr(SamplingState, "__init__", poisoned)


def break_fetching(patch: pytest.MonkeyPatch) -> None:
    def poisoned(self: InPlaceKv, model: str, sequence: object) -> bool:
        if sequence.sampling.params.seed == POISON:
            raise AssertionError("KV is not where it should be")
        return True

    patch.setattr(InPlaceKv, "fetch", poisoned)


@pytest.mark.parametrize(
    ("fault", "policy", "model"),
    [
        (break_forward, "slack", "m0"),
        (break_forward, "aegaeon", "m0"),
        (break_sampling, "slack", "m0"),
        (break_settling, "slack", "m0"),
        (break_admission, "aegaeon", "m0"),
        (break_fetching, "slack", "m0"),
        (break_sampling, "slack", "lfm2"),  # its states are changed by then
        (break_sampling, "copying", "lfm2"),
    ],
)
async def test_an_error_of_one_request_ends_that_request_and_the_others_go_on(
    pool, model_paths, hybrid_paths, monkeypatch, fault, policy, model
):
    fault(monkeypatch)
    path = {**model_paths(1), **hybrid_paths}[model]
    options = {"copy_to_device": True, "device_bytes": 24 << 20} if policy == "copying" else {"policy": policy}
    async with pool((), extra={model: path}, **options) as running:
        expected = healthy(path, 4, 24)
        good = [running.generate(f"r{index}", model, prompt, 24) for index, prompt in enumerate(expected)]
        bad = [running.generate(f"b{i}", model, (*prompt_for(9 + i), POISON), 24, seed=POISON) for i in range(2)]
        results = await asyncio.gather(*good, *bad, return_exceptions=True)
        later = await running.generate("later", model, prompt_for(8), 8)
        pids = [one.pid for _, state in running.frontend.node_states() for one in state.instances]
        await running.settled()
    for error in results[4:]:
        assert isinstance(error, EngineError)
        assert error.cause is FailureCause.ENGINE
        assert model in str(error)
    assert [output.token_ids for output in results[:4]] == list(expected.values())
    assert later.token_ids == generate_alone(path, prompt_for(8), 8)
    assert len(running.threads) == len(pids) == 1, "no instance was started in place of another"


async def test_a_batch_that_fails_as_a_whole_goes_on_one_by_one(pool, model_paths, monkeypatch):
    """As where memory suffices for one at a time only. Whoever watches is told of each step; none is timed whole."""
    step, add, work, refused, timed, said = Runner.step, TurnClock.add, Pulse.work, [], [], []

    def clocked(self: TurnClock, feeds: list[object], seconds: float) -> None:
        timed.append(len(feeds))
        add(self, feeds, seconds)

    def announced(self: Pulse, expected_s: float | None = None) -> None:
        said.append("work")
        work(self, expected_s)

    def cramped(self: Runner, slices: list[SequenceSlice], arena: object) -> torch.Tensor:
        said.append("step")
        if len(slices) > 1:
            refused.append(len(slices))
            raise torch.OutOfMemoryError("not enough memory for so many")
        return step(self, slices, arena)

    monkeypatch.setattr(Runner, "step", cramped)
    monkeypatch.setattr(TurnClock, "add", clocked)
    monkeypatch.setattr(Pulse, "work", announced)
    async with pool(1) as running:
        prompts = [prompt_for(index) for index in range(3)]
        outputs = await asyncio.gather(
            *(running.generate(f"r{index}", "m0", prompt, 20) for index, prompt in enumerate(prompts))
        )
        await running.settled()
    assert refused, "they were together"
    assert set(timed) <= {1}
    assert ("step", "step") not in pairwise(said)
    for output, prompt in zip(outputs, prompts, strict=True):
        assert output.token_ids == generate_alone(model_paths(1)["m0"], prompt, 20)


async def test_what_cannot_be_prepared_in_idle_moments_ends_nothing(pool, model_paths, monkeypatch):
    failed = []

    def never(self: MappedWeights) -> bool:
        if len(failed) < 3:
            failed.append(self)
            raise RuntimeError("a graph that cannot be captured")
        return False

    monkeypatch.setattr(MappedWeights, "prepare_one", never)
    async with pool(1) as running:
        output = await running.generate("r", "m0", prompt_for(0), 8)
    assert len(failed) == 3
    assert output.token_ids == generate_alone(model_paths(1)["m0"], prompt_for(0), 8)


async def test_a_device_that_is_lost_ends_the_process(pool, monkeypatch):
    """Nothing will ever run there again: another process must take its place."""
    ended: list[BaseException] = []
    monkeypatch.setattr("threading.excepthook", lambda args: ended.append(args.exc_value))

    def lost(self: MappedWeights) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(MappedWeights, "check_device", lost)
    break_forward(monkeypatch)
    async with pool(1) as running:
        asked = asyncio.create_task(running.generate("bad", "m0", (*prompt_for(1), POISON), 4))
        async with asyncio.timeout(20):
            while running.threads[0].is_alive():
                await asyncio.sleep(0.01)
        asked.cancel()
    assert [str(error) for error in ended] == ["CUDA error: an illegal memory access was encountered"]
