"""Models whose tokenizers cannot be loaded, at the start or while the service runs: the others are served."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from aegaeon.cli.service.server_process import offer_all, offer_later
from aegaeon.core.config import ModelConfig
from aegaeon.core.generation import (
    GenerationRequest,
    ModelUnavailableError,
    PoolUnavailableError,
    TokenPrompt,
    UnknownModelError,
)
from aegaeon.core.sampling import SamplingParams
from aegaeon.engine.architecture.prepare import prepare_models
from aegaeon.engine.prepared.prepared_model import PreparedModel
from aegaeon.runtime.frontend.frontend import PoolFrontend
from aegaeon.runtime.frontend.served_model import ServedModel
from aegaeon.runtime.inspection import inspect_models
from aegaeon.runtime.wire.clock import MonotonicClock


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


def test_a_tokenizer_that_fails_in_a_new_way_refuses_its_model_alone(
    model_paths: Callable[[int], dict[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = [ModelConfig(name, path) for name, path in model_paths(2).items()]
    load = ServedModel.of

    def strange(model: PreparedModel) -> ServedModel:
        if model.spec.name == "m0":
            raise MemoryError("no room for so many words")
        return load(model)

    monkeypatch.setattr(ServedModel, "of", strange)
    good, [refused] = inspect_models(configs, 16, None)
    assert [model.spec.name for model in good] == ["m1"]
    assert (refused.config.name, "MemoryError: no room" in refused.reason) == ("m0", True)
