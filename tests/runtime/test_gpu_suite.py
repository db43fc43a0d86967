"""The GPU suite without a GPU: it says so, keeps what it has, and its measurements run on the CPU's copying mode."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmark import gpu_suite


def test_without_a_gpu_it_says_so_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_suite, "_device", lambda kind: "there is no NVIDIA driver here")
    out = tmp_path / "gpu.json"
    assert gpu_suite.main(["--out", str(out)]) == gpu_suite.NO_GPU
    assert "needs a GPU: there is no NVIDIA driver here. Nothing was measured." in capsys.readouterr().out
    assert not out.exists()


def test_a_stage_that_fails_keeps_the_results_of_the_others(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    arguments = ["--device", "cpu", "--models", "tiny", "--work", str(tmp_path / "models"), "--out", str(out)]
    code = gpu_suite.main([*arguments, "--kv-gib", "0.03", "--stage", "kv", "--stage", "tokens"])
    stages = json.loads(out.read_text())["stages"]
    assert code == 1
    assert list(stages) == ["kv", "tokens"]
    assert stages["kv"]["failed"]
    assert stages["kv"]["records"] == []


def test_tokens_are_equal_across_switches_and_with_the_host(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    arguments = ["--device", "cpu", "--models", "tiny", "--work", str(tmp_path / "models"), "--out", str(out)]
    assert gpu_suite.main([*arguments, "--kv-gib", "0.25", "--stage", "tokens"]) == 0
    records = json.loads(out.read_text())["stages"]["tokens"]["records"]
    assert [record["equal"] for record in records] == [True, True]
