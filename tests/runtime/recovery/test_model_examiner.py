"""Whether a model that failed could be used again, by what is in its folder now."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue

import pytest
import torch
from safetensors.torch import load_file, save_file

import quick_model_loader as qml
from aegaeon.engine.architecture.image import needs_image
from aegaeon.engine.prepared.fingerprint import config_fingerprint, files_fingerprint
from aegaeon.runtime.recovery.model_examiner import ExaminedModel, ModelExaminer
from aegaeon.runtime.wire.model_failure import FailureKind, ModelFailure, ModelProblem

ROOM_BYTES = 1 << 20  # for a few tensors more


class Examined:
    """A model's folder and its examiner."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.weights = folder / "model.safetensors"
        self._examiner = ModelExaminer({"m": as_started(folder)}, needs_image)

    def problem(self, kind: FailureKind) -> ModelProblem | None:
        found: SimpleQueue[ModelProblem | None] = SimpleQueue()
        self._examiner.examine(ModelFailure("m", "as before", kind, 0.0), found.put)
        return found.get(timeout=20)

    def close(self) -> None:
        self._examiner.close()


def as_started(folder: Path) -> ExaminedModel:
    """A model that the service was started with, as it was then."""
    room_bytes = qml.inspect(folder).buffer_bytes + ROOM_BYTES
    return ExaminedModel(folder, folder, room_bytes, config_fingerprint(folder), files_fingerprint(folder), "float32")


@pytest.fixture
def examined(model_paths: Callable[[int], dict[str, Path]], tmp_path: Path) -> Iterator[Examined]:
    examined = Examined(shutil.copytree(model_paths(1)["m0"], tmp_path / "m"))
    yield examined
    examined.close()


def test_wrong_files_are_wrong_until_they_change(examined: Examined):
    whole = examined.weights.read_bytes()
    assert examined.problem(FailureKind.FILES) == ModelProblem("as before", FailureKind.FILES)
    examined.weights.write_bytes(whole[:-8])
    truncated = examined.problem(FailureKind.FILES)
    assert truncated is not None
    assert truncated.kind is FailureKind.FILES
    assert "model.safetensors" in truncated.reason
    assert examined.problem(FailureKind.FILES) == ModelProblem("as before", FailureKind.FILES)  # nobody has touched it
    examined.weights.write_bytes(whole)
    assert examined.problem(FailureKind.FILES) is None


def test_a_folder_that_is_missing_may_come_back(examined: Examined):
    away = examined.folder.with_name("away")
    shutil.move(examined.folder, away)
    for kind in (FailureKind.FILES, FailureKind.TRANSIENT, FailureKind.TRANSIENT):
        missing = examined.problem(kind)
        assert missing is not None
        assert missing.kind is FailureKind.TRANSIENT
    shutil.move(away, examined.folder)
    assert examined.problem(FailureKind.TRANSIENT) is None


def test_what_passes_is_tried_again_without_a_change(examined: Examined):
    assert examined.problem(FailureKind.TRANSIENT) is None


def test_another_model_in_the_folder_needs_a_restart(examined: Examined):
    config = examined.folder / "config.json"
    before = config.read_text()
    config.write_text(before.replace('"llama"', '"qwen3"'))
    other = examined.problem(FailureKind.FILES)
    assert other is not None
    assert "restart" in other.reason
    config.write_text(before)
    os.utime(config, ns=(1, 1))
    assert examined.problem(FailureKind.FILES) is None
    save_file({**load_file(examined.weights), "more": torch.zeros(ROOM_BYTES)}, examined.weights)
    larger = examined.problem(FailureKind.FILES)
    assert larger is not None
    assert "restart" in larger.reason


@pytest.mark.parametrize(
    ("name", "tensor", "told"),
    [
        ("model.layers.0.self_attn.q_proj.bias", torch.ones(64), "for which its configuration has no place"),
        ("model.layers.0.mlp.up_proj.weight_scale", torch.ones(1), "for which its configuration has no place"),
        ("model.layers.0.mlp.up_proj.codes", torch.ones(8, dtype=torch.uint8), "it is quantized"),
        ("model.norm.weight", torch.ones(64, dtype=torch.bfloat16), "must be converted, unlike when"),
    ],
)
def test_weights_that_would_not_have_been_served_at_the_start_are_not_served_later(
    examined: Examined, name: str, tensor: torch.Tensor, told: str
):
    whole = load_file(examined.weights)
    save_file({**whole, name: tensor}, examined.weights)
    unfit = examined.problem(FailureKind.FILES)
    assert unfit is not None
    assert unfit.kind is FailureKind.FILES
    assert name in unfit.reason
    assert told in unfit.reason
    save_file(whole, examined.weights)
    assert examined.problem(FailureKind.FILES) is None


def test_a_model_that_killed_instances_is_not_judged_by_its_files(examined: Examined):
    assert examined.problem(FailureKind.KILLS) is None


def test_a_driver_that_starts_while_a_folder_is_away_knows_the_model_when_it_is_back(examined: Examined):
    away, model = examined.folder.with_name("away"), as_started(examined.folder)
    examined.folder.rename(away)
    examiner = ModelExaminer({"m": model}, needs_image)
    away.rename(examined.folder)
    found: SimpleQueue[ModelProblem | None] = SimpleQueue()
    examiner.examine(ModelFailure("m", "missing", FailureKind.TRANSIENT, 0.0), found.put)
    assert found.get(timeout=20) is None
    examiner.close()
