"""Profiling a device that weights and KV are copied to; the processor stands in for a GPU."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from aegaeon.device.cuda.inventory import Gpu, kernel_driver
from aegaeon.latency.files.profile_file import ProfileFile
from aegaeon.profiling.campaign import Campaign
from aegaeon.profiling.copies import CopyBench, copied_bytes
from aegaeon.profiling.errors import ProfilingError
from aegaeon.profiling.point import Copied
from aegaeon.profiling.target import Target, copying_target, gpu_target
from aegaeon.source_commit import source_commit
from aegaeon.toy_models.make_model import make_model
from aegaeon.toy_models.model_request import ModelSizes

SIZES = ModelSizes(hidden_size=256, layers=4, heads=4, kv_heads=4, max_context=128)
"""KV blocks of 64 KiB: copies are timed by the 128 MiB, and very many of very small ones take long."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three models: one more than are on the device at once."""
    made = {name: tmp_path_factory.mktemp("profiled") / name for name in ("a", "b", "c")}
    for seed, folder in enumerate(made.values()):
        make_model("llama", folder, SIZES, seed=seed)
    return made


def campaign(folders: dict[str, Path], out: Path, target: Target, kv_bytes: int = 4 << 20) -> Campaign:
    return Campaign(
        folders, out, 1, kv_bytes, 64, 4, 96, 0.9, True, False, "2026-11-21", target=target, commit="abc123"
    )


@pytest.mark.slow
def test_all_points_are_measured_and_written_with_their_provenance(folders: dict[str, Path], tmp_path: Path) -> None:
    target = copying_target(1, 64 << 20)
    files, problems = campaign(folders, tmp_path, target).run(lambda *progress: None)
    assert not problems
    assert [file.model for file in files] == ["a", "b", "c"]
    for file in files:
        assert file == ProfileFile.read(tmp_path / target.name / f"{file.model}.json")
        assert file.switching is not None
        assert file.switching.from_disk_s > 0
        assert file.copying is not None
        assert min(file.copying.kv_in_bytes_per_s, file.copying.kv_out_bytes_per_s) > 1e6
        assert file.provenance.tool.endswith("commit abc123")
        assert "copying" in file.provenance.source


def test_models_that_do_not_fit_the_device_are_a_clear_error(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ProfilingError, match="profile fewer or smaller models at a time"):
        campaign(folders, tmp_path, copying_target(1, 1 << 20)).run(lambda *progress: None)


@pytest.mark.parametrize("what", Copied)
def test_copies_are_timed_until_they_have_landed(what: Copied) -> None:
    piece_bytes = 3 << 20
    with CopyBench("lazy", 2 << 20, piece_bytes) as bench:  # its copies land only when their event is waited for
        seconds = bench.seconds(what, piece_bytes)
    assert copied_bytes(piece_bytes) % piece_bytes == 0
    assert seconds > 0


def test_a_gpu_is_called_by_its_name_and_tells_its_driver() -> None:
    gpu = Gpu(0, "NVIDIA H200", 140 << 30, 141 << 30, 2 << 20, "13.0")
    target = gpu_target([gpu], 8, 100 << 30)
    assert (target.name, target.kind, target.copying) == ("h200", "cuda", True)
    assert target.description.startswith("NVIDIA H200, driver ")
    assert target.description.endswith("for CUDA 13.0")


def test_the_kernel_drivers_version(tmp_path: Path) -> None:
    file = tmp_path / "version"
    assert kernel_driver(file) == ""
    file.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 07:02:39 UTC 2026\n")
    assert kernel_driver(file) == "580.65.06"


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_is_that_of_the_checkout_and_empty_elsewhere(tmp_path: Path) -> None:
    assert source_commit(tmp_path) == ""
    (tmp_path / "file").write_text("one")
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    for arguments in (("init", "-q"), ("add", "file"), (*identity, "commit", "-q", "-m", "one")):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True)
    commit = source_commit(tmp_path)
    assert re.fullmatch("[0-9a-f]{10}", commit)
    (tmp_path / "file").write_text("two")
    assert source_commit(tmp_path) == f"{commit}+"
    installed = tmp_path / "site-packages"
    installed.mkdir()
    (installed / "module.py").touch()
    assert source_commit(installed) == "", "the checkout that an environment lies in is not this code's"
