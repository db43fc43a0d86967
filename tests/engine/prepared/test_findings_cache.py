"""What was found of a model counts as long as nothing has changed, and never when it is anybody else's."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from aegaeon.core.config import ModelConfig
from aegaeon.core.kv_shape import KvShape, LayerKv
from aegaeon.core.model import ModelSpec
from aegaeon.core.slo import Slo
from aegaeon.engine.prepared import findings_cache
from aegaeon.engine.prepared.engine_facts import EngineFacts
from aegaeon.engine.prepared.findings_cache import FindingsCache
from aegaeon.engine.prepared.fingerprint import config_fingerprint, files_fingerprint, weights_fingerprint
from aegaeon.engine.prepared.prepared_model import PreparedModel

FACTS = EngineFacts(
    architecture="Llama",
    parameters=7,
    weight_bytes=28,
    kv_shape=KvShape((LayerKv(2, 16, 16), LayerKv(1, 8, 4)), 4, 16),
    max_context_tokens=512,
    eos_token_ids=(1, 2),
    vocab_size=320,
    dtype="float32",
    sampling_defaults={"temperature": 0.5, "top_k": 20},
    notes=("odd",),
)


def folder_of(path: Path) -> Path:
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(b"weights")
    return path


def prepared(config: ModelConfig, path: Path | None = None) -> PreparedModel:
    spec = ModelSpec(config.name, 28, FACTS.kv_shape, FACTS.max_context_tokens, config.slo)
    bound = path or config.path
    prints = config_fingerprint(config.path), files_fingerprint(config.path), weights_fingerprint(bound)
    return PreparedModel(config, bound, FACTS, spec, "a note", *prints)


@pytest.fixture
def config(tmp_path: Path) -> ModelConfig:
    return ModelConfig("m", folder_of(tmp_path / "model"))


@pytest.fixture
def cache(tmp_path: Path) -> FindingsCache:
    return FindingsCache(tmp_path / "not" / "there yet", 16)


def entry_of(cache_folder: Path) -> Path:
    [file] = cache_folder.glob("not/there yet/*")
    return file


def test_what_was_found_is_known_later_and_to_everybody(tmp_path: Path, cache: FindingsCache, config: ModelConfig):
    assert cache.get(config) is None
    cache.put(prepared(config))
    found = FindingsCache(entry_of(tmp_path).parent, 16).get(config)
    assert found == prepared(config)
    assert found is not None
    assert isinstance(found.facts.sampling_defaults["top_k"], int)


def test_its_name_and_its_targets_are_not_looked_for_in_its_files(cache: FindingsCache, config: ModelConfig):
    cache.put(prepared(config))
    other = replace(config, name="other", slo=Slo(ttft_s=3.0))
    assert cache.get(other) == prepared(other)


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "config.json").write_text("{} "),
        lambda folder: (folder / "model.safetensors").write_bytes(b"others."),
        lambda folder: os.utime(folder / "model.safetensors", ns=(1, 1)),
        lambda folder: (folder / "generation_config.json").touch(),
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: folder.rename(folder.with_name("away")),
    ],
)
def test_a_folder_that_has_changed_is_not_known(
    cache: FindingsCache, config: ModelConfig, change: Callable[[Path], object]
):
    cache.put(prepared(config))
    change(config.path)
    assert cache.get(config) is None


@pytest.mark.parametrize("change", [{"dtype": "bfloat16"}, {"max_context_tokens": 100}])
def test_another_question_has_another_answer(cache: FindingsCache, config: ModelConfig, change: dict[str, object]):
    cache.put(prepared(config))
    assert cache.get(replace(config, **change)) is None  # type: ignore[arg-type]


def test_blocks_of_another_size_are_another_question(tmp_path: Path, cache: FindingsCache, config: ModelConfig):
    cache.put(prepared(config))
    assert FindingsCache(entry_of(tmp_path).parent, 32).get(config) is None


def test_what_other_code_has_found_does_not_count(
    cache: FindingsCache, config: ModelConfig, monkeypatch: pytest.MonkeyPatch
):
    cache.put(prepared(config))
    monkeypatch.setattr(findings_cache, "looked_by", lambda: "the engine of tomorrow")
    assert cache.get(config) is None


def test_an_image_is_part_of_what_was_found(tmp_path: Path, cache: FindingsCache, config: ModelConfig):
    image = folder_of(tmp_path / "image")
    cache.put(prepared(config, image))
    assert cache.get(config) == prepared(config, image)
    (image / "model.safetensors").write_bytes(b"half")
    assert cache.get(config) is None


@pytest.mark.parametrize("damage", ["", "{", "[]", "null", '{"digest": "", "found": {}}', '{"found": []}', "\xff"])
def test_a_damaged_entry_is_none(tmp_path: Path, cache: FindingsCache, config: ModelConfig, damage: str):
    cache.put(prepared(config))
    entry_of(tmp_path).write_text(damage, encoding="latin-1")
    assert cache.get(config) is None


def test_an_entry_that_somebody_has_written_over_is_none(tmp_path: Path, cache: FindingsCache, config: ModelConfig):
    cache.put(prepared(config))
    file = entry_of(tmp_path)
    entry = json.loads(file.read_text())
    entry["found"]["weight_bytes"] = 1
    file.write_text(json.dumps(entry))
    assert cache.get(config) is None


def test_another_models_entry_is_none(tmp_path: Path, cache: FindingsCache, config: ModelConfig):
    cache.put(prepared(config))
    own = entry_of(tmp_path)
    entry = own.read_bytes()
    own.unlink()
    other = ModelConfig("m", folder_of(tmp_path / "other"))
    cache.put(prepared(other))
    entry_of(tmp_path).write_bytes(entry)
    assert cache.get(other) is None


def test_where_nothing_can_be_kept_nothing_is(tmp_path: Path, config: ModelConfig):
    (tmp_path / "file").touch()
    for folder in (None, tmp_path / "file" / "folder"):
        cache = FindingsCache(folder, 16)
        cache.put(prepared(config))
        assert cache.get(config) is None


@pytest.mark.parametrize("content", [b"[" * 200_000, b" " * (2 << 20), b'{"digest": 1, "found": []}'], ids=len)
def test_what_is_no_entry_counts_as_none(
    tmp_path: Path, cache: FindingsCache, config: ModelConfig, content: bytes
) -> None:
    cache.put(prepared(config))
    entry_of(tmp_path).write_bytes(content)
    assert cache.get(config) is None


def test_what_is_no_file_is_not_read(tmp_path: Path, cache: FindingsCache, config: ModelConfig) -> None:
    cache.put(prepared(config))
    entry = entry_of(tmp_path)
    entry.unlink()
    os.mkfifo(entry)
    assert cache.get(config) is None
    entry.unlink()
    entry.mkdir()
    cache.put(prepared(config))
    assert cache.get(config) is None
    assert entry_of(tmp_path) == entry  # and nothing beside it


def test_weights_that_are_written_over_are_others_whatever_their_time(config: ModelConfig):
    weights = config.path / "model.safetensors"
    os.utime(weights, (1e9, 1e9))
    before, changed_ns = weights_fingerprint(config.path), weights.stat().st_ctime_ns
    assert weights_fingerprint(config.path) == before
    while weights.stat().st_ctime_ns == changed_ns:  # the kernel's clock for files ticks every few milliseconds
        with weights.open("r+b") as file:
            file.write(b"WEIGHTS")
        os.utime(weights, (1e9, 1e9))
    assert weights_fingerprint(config.path) != before
