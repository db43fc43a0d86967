"""A model's own sampling defaults fill in what a request leaves open, and nothing else."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from aegaeon.core.config import ModelConfig
from aegaeon.core.generation import GenerationRequest, TokenPrompt
from aegaeon.core.sampling import SamplingParams
from aegaeon.engine.architecture.prepare import prepare_models
from aegaeon.runtime.frontend.served_model import ServedModel

PROMPT = TokenPrompt((5, 6, 7))
DEFAULTS = {"temperature": 0.0, "max_new_tokens": 3}


@pytest.fixture
def opinionated(model_paths: Callable[[int], dict[str, Path]], tmp_path: Path) -> Path:
    """A model that says how it wants to be sampled."""
    path = tmp_path / "opinionated"
    shutil.copytree(model_paths(1)["m0"], path)
    file = path / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | DEFAULTS))
    return path


async def tokens(running, unset: frozenset[str], **sampling) -> list[int]:
    params = SamplingParams(**{"max_new_tokens": 2**31 - 1, "ignore_eos": True, "seed": 1, **sampling})
    request = GenerationRequest(uuid.uuid4().hex, "own", PROMPT, params, fit_context=True, unset=unset)
    return [token async for delta in await running.frontend.generate(request) for token in delta.token_ids]


async def test_what_a_request_leaves_open_is_the_models_to_say(pool, opinionated):
    async with pool(1, extra={"own": opinionated}) as running:
        greedy = await tokens(running, frozenset(), temperature=0.0, max_new_tokens=5)
        assert len(greedy) == 5
        assert await tokens(running, frozenset(DEFAULTS)) == greedy[:3]
        assert await tokens(running, frozenset({"temperature"}), max_new_tokens=5) == greedy
        assert len(await tokens(running, frozenset(DEFAULTS), min_new_tokens=4, max_new_tokens=4)) == 4


def test_a_setting_leaves_them_out(opinionated, tmp_path):
    [model], _ = prepare_models([ModelConfig("own", opinionated)], 16, tmp_path)
    assert ServedModel.of(model).sampling_defaults == DEFAULTS
    without = replace(model, config=replace(model.config, generation_config="none"))
    assert ServedModel.of(without).sampling_defaults == {}
