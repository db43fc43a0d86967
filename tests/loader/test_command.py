"""The command, as people run it."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from quick_model_loader.command import main

from .conftest import MIB

WriteModel = Callable[..., Path]


def test_info(write_model: WriteModel, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_model("model[0]", 1234)
    assert main(["info", str(path)]) == 0
    output = capsys.readouterr().out
    assert "model[0].safetensors" in output
    assert "1,234" in output
    assert f"1 tensors, {path.stat().st_size:,} bytes on disk" in output


def test_hash_and_verify(write_model: WriteModel, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_model("a", 9 * MIB)
    assert main(["verify", str(path.parent)]) == 1
    assert "write them with: python -m quick_model_loader hash DIR" in capsys.readouterr().err
    assert main(["hash", str(path.parent), "--threads", "2"]) == 0
    assert f"wrote {path}.xxh3" in capsys.readouterr().out
    assert main(["verify", str(path.parent)]) == 0
    assert "1 files are intact" in capsys.readouterr().out
    with path.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"?")
    assert main(["verify", str(path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}")
    assert "damaged" in error


def test_bench(write_model: WriteModel, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_model("a", 3 * MIB)
    assert main(["bench", str(path), "--repeat", "1"]) == 0
    output = capsys.readouterr().out
    assert "cold" in output
    assert "warm" in output
    assert "pages" in output


def test_mistakes_are_told_without_a_traceback(tmp_path: Path) -> None:
    def run(*arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "quick_model_loader", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stderr

    status, error = run("info", str(tmp_path / "nothing"))
    assert status == 1
    assert f"error: {tmp_path / 'nothing'}: cannot open: No such file or directory" in error
    for arguments in ((), ("fly", "x"), ("bench", "x", "--repeat", "0"), ("hash",)):
        status, error = run(*arguments)
        assert status == 2
        assert "usage:" in error
