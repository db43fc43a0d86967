"""Models whose folders went away while the service ran: a new server serves the others."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from aegaeon.cli.server_process import offer_all, offer_later
from aegaeon.core.config import ModelConfig
from aegaeon.core.generation import (
    GenerationRequest,
    ModelUnavailableError,
    PoolUnavailableError,
    TokenPrompt,
    UnknownModelError,
)
from aegaeon.core.sampling import SamplingParams
from aegaeon.runtime.clock import MonotonicClock
from aegaeon.runtime.frontend import PoolFrontend
from aegaeon.runtime.prepare import prepare_models


async def ask(frontend: PoolFrontend, model: str) -> None:
    await frontend.generate(GenerationRequest("r", model, TokenPrompt((1, 2)), SamplingParams(max_new_tokens=2)))


async def test_a_model_whose_folder_is_away_is_not_served_until_it_is_back(
    model_paths: Callable[[int], dict[str, Path]], tmp_path: Path
) -> None:
    there, away = tmp_path / "there", tmp_path / "away"
    for name, place in zip(("m0", "m1"), (there, away), strict=True):
        shutil.copytree(model_paths(2)[name], place)
    models, _ = prepare_models([ModelConfig("there", there), ModelConfig("away", away)], 16, None)
    away.rename(tmp_path / "elsewhere")

    frontend = PoolFrontend({}, MonotonicClock(), homeless_s=0.0)
    left = offer_all(frontend, models)
    assert [model.spec.name for model in left] == ["away"]
    failures = {card.name: card.failure for card in frontend.models()}
    assert failures["there"] is None
    assert "no tokenizer" in str(failures["away"])
    with pytest.raises(ModelUnavailableError, match="no tokenizer"):
        await ask(frontend, "away")
    with pytest.raises(UnknownModelError):
        await ask(frontend, "never heard of")

    (tmp_path / "elsewhere").rename(away)
    await offer_later(frontend, left, pause_s=0.0)
    assert {card.name: card.failure for card in frontend.models()} == {"there": None, "away": None}
    for name in ("there", "away"):
        with pytest.raises(PoolUnavailableError):  # there is no node here
            await ask(frontend, name)
    frontend.close()
