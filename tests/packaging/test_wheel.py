"""The wheel as a user installs it: in a fresh environment, away from the source tree."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
SIMULATE = ("simulate", "--num-models", "4", "--arrival-rate", "1", "--duration", "5", "--workers", "1")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", out], cwd=ROOT, check=True)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``aegaeon`` command of an environment that has the wheel, and this one's packages but not its source tree."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder)
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python"]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", wheel], check=True, env=_bare())
    # A folder that is added this way brings its packages, and not the links to source trees that lie in it.
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "aegaeon"


def _bare() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


def run(command: Path, *arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [command, *map(str, arguments)],
        cwd=folder,
        env={**_bare(), "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_wheel_brings_profiles_and_no_results(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    shipped = {file.relative_to(ROOT / "profiles") for file in (ROOT / "profiles").rglob("*.json")}
    assert shipped
    assert {f"aegaeon/data/profiles/{file}" for file in shipped} <= names
    assert not [name for name in names if name.startswith(("benchmark/results/", "tests/", "plots/"))]


def test_the_package_is_the_installed_one(installed: Path, tmp_path: Path) -> None:
    python = installed.with_name("python")
    code = "import aegaeon, benchmark, sim; print(aegaeon.__file__, benchmark.__file__, sim.__file__)"
    found = run(python, "-c", code, folder=tmp_path).stdout.split()
    assert len(found) == 3
    assert all(Path(file).is_relative_to(installed.parent.parent) for file in found)


@pytest.mark.parametrize("flags", [(), ("--compat", "artifact")])
def test_it_simulates_as_the_source_tree_does(installed: Path, tmp_path: Path, flags: tuple[str, ...]) -> None:
    (tmp_path / "tree").mkdir()
    for command, out in ((installed, "wheel"), (Path(sys.executable).with_name("aegaeon"), "tree")):
        ended = run(command, *SIMULATE, *flags, "--out", out, folder=tmp_path)
        assert ended.returncode == 0, ended.stderr
    by_wheel, by_tree = (_texts(tmp_path / out) for out in ("wheel", "tree"))
    assert by_wheel.keys() == by_tree.keys() != set()
    assert by_wheel == by_tree


def _texts(folder: Path) -> dict[str, str]:
    """Without the commit: a wheel is of none."""
    return {file.name: re.sub(r'"commit": "[^"]*"', "", file.read_text()) for file in folder.iterdir()}


def test_it_makes_a_model(installed: Path, tmp_path: Path) -> None:
    made = run(installed, "make-model", "llama", "m", "--layers", 1, "--hidden-size", 64, folder=tmp_path)
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "m" / "model.safetensors").is_file()


def test_it_profiles(installed: Path, tmp_path: Path) -> None:
    """As far as a model that is not there allows."""
    ended = run(installed, "profile", "m", folder=tmp_path)
    assert ended.returncode == 2
    assert "m" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_it_benchmarks(installed: Path, tmp_path: Path) -> None:
    """As far as a server that is not there allows."""
    ended = run(
        installed, "bench", "--base-url", "http://127.0.0.1:9", "--num-models", 4, "--arrival-rate", 1, folder=tmp_path
    )
    assert ended.returncode != 0
    assert "127.0.0.1:9" in ended.stderr
    assert "Traceback" not in ended.stderr
