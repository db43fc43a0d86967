"""Models are looked at once, at start, and a bad one does not stop the others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from aegaeon.core.config import ModelConfig
from aegaeon.engine.architecture.prepare import prepare_models


def edit(path: Path, **values: object) -> None:
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def many_layers(path: Path) -> None:
    edit(path, num_hidden_layers=4000)


def endless_layers(path: Path) -> None:
    """Transformers would begin with a list of them."""
    edit(path, num_hidden_layers=10**9, n_layer=10**9)


def nested(path: Path) -> None:
    (path / "config.json").write_text('{"model_type":' * 10**5)


def nested_generation_config(path: Path) -> None:
    (path / "generation_config.json").write_text("[" * 10**5)


def list_for_tokenizer_config(path: Path) -> None:
    (path / "tokenizer_config.json").write_text("[]")


def no_rotary_base(path: Path) -> None:
    edit(path, rope_parameters={"rope_type": "default", "rope_theta": 0})


def huge_vocabulary(path: Path) -> None:
    edit(path, vocab_size=10**12)


def huge_window(path: Path) -> None:
    edit(path, sliding_window=10**30)


def endless_context(path: Path) -> None:
    edit(path, max_position_embeddings=10**30)


def not_there(path: Path) -> None:
    shutil.rmtree(path)


@pytest.mark.parametrize(
    "spoil",
    [
        *(many_layers, endless_layers, nested, nested_generation_config, list_for_tokenizer_config),
        *(no_rotary_base, huge_vocabulary, huge_window, endless_context, not_there),
    ],
)
def test_a_bad_folder_is_refused_alone(
    model_paths: Callable[[int], dict[str, Path]],
    tmp_path: Path,
    spoil: Callable[[Path], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    good = model_paths(1)["m0"]
    shutil.copytree(good, tmp_path / "bad")
    spoil(tmp_path / "bad")
    configs = [ModelConfig("bad", tmp_path / "bad"), ModelConfig("good", good)]
    prepared, refused = prepare_models(configs, 16, tmp_path)
    assert [model.config.name for model in prepared] == ["good"]
    assert [model.config.name for model in refused] == ["bad"]
    assert str(tmp_path / "bad") in refused[0].reason
    assert not any(record.exc_info for record in caplog.records)


def test_a_failure_that_nobody_foresaw_is_refused_too(
    model_paths: Callable[[int], dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("deep within")

    monkeypatch.setattr("aegaeon.engine.architecture.prepare.inspect_model", fail)
    prepared, refused = prepare_models([ModelConfig("m", model_paths(1)["m0"])], 16, tmp_path)
    assert prepared == []
    assert "ZeroDivisionError: deep within" in refused[0].reason


def test_the_tokenizers_end_of_text_counts_too(model_paths: Callable[[int], dict[str, Path]], tmp_path: Path) -> None:
    [model], _ = prepare_models([ModelConfig("m", model_paths(1)["m0"])], 16, tmp_path)
    own = model.facts.eos_token_ids
    assert model.with_tokenizer(None, ()).facts.eos_token_ids == own
    assert model.with_tokenizer(own[0], ()).facts.eos_token_ids == own
    other = model.with_tokenizer(own[0] + 1, ["a note"])
    assert (other.facts.eos_token_ids, other.note) == ((*own, own[0] + 1), "a note")
    beyond = model.with_tokenizer(model.facts.vocab_size, ())
    assert beyond.facts.eos_token_ids == own
    assert "is ignored" in beyond.note
