"""Whether a model that failed could be used again, by what is in its folder now."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue

import pytest
import torch
from safetensors.torch import save_file

from aegaeon.runtime.model_examiner import ExaminedModel, ModelExaminer
from aegaeon.runtime.model_failure import FailureKind, ModelFailure, ModelProblem
from aegaeon.runtime.prepare import config_fingerprint


class Examined:
    """A model's folder and its examiner."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.weights = folder / "model.safetensors"
        (folder / "config.json").write_text('{"model_type": "llama"}')
        save_file({"w": torch.zeros(1000)}, self.weights)
        self._examiner = ModelExaminer({"m": ExaminedModel(folder, folder, 8192, config_fingerprint(folder))})

    def problem(self, kind: FailureKind) -> ModelProblem | None:
        found: SimpleQueue[ModelProblem | None] = SimpleQueue()
        self._examiner.examine(ModelFailure("m", "as before", kind, 0.0), found.put)
        return found.get(timeout=20)

    def close(self) -> None:
        self._examiner.close()


@pytest.fixture
def examined(tmp_path: Path) -> Iterator[Examined]:
    (tmp_path / "m").mkdir()
    examined = Examined(tmp_path / "m")
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
    config.write_text('{"model_type": "qwen3"}')
    other = examined.problem(FailureKind.FILES)
    assert other is not None
    assert "restart" in other.reason
    config.write_text(before)
    os.utime(config, ns=(1, 1))
    assert examined.problem(FailureKind.FILES) is None
    save_file({"w": torch.zeros(100_000)}, examined.weights)
    larger = examined.problem(FailureKind.FILES)
    assert larger is not None
    assert "restart" in larger.reason


def test_a_model_that_killed_instances_is_not_judged_by_its_files(examined: Examined):
    assert examined.problem(FailureKind.KILLS) is None


def test_a_driver_that_starts_while_a_folder_is_away_knows_the_model_when_it_is_back(examined: Examined):
    away, kept = examined.folder.with_name("away"), config_fingerprint(examined.folder)
    examined.folder.rename(away)
    examiner = ModelExaminer({"m": ExaminedModel(examined.folder, examined.folder, 8192, kept)})
    away.rename(examined.folder)
    found: SimpleQueue[ModelProblem | None] = SimpleQueue()
    examiner.examine(ModelFailure("m", "missing", FailureKind.TRANSIENT, 0.0), found.put)
    assert found.get(timeout=20) is None
    examiner.close()
