"""What the pure packages load into a process, seen from outside: the import contracts read names, this runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Imports a package with all its submodules (except the ones that run as scripts), prints what came with it.
PROBE = """
import importlib, json, pkgutil, sys
before = set(sys.modules)
package = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(getattr(package, "__path__", ()), sys.argv[1] + "."):
    if not module.name.endswith(".__main__"):
        importlib.import_module(module.name)
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def brought_in(package: str) -> set[str]:
    """Names of all modules that importing ``package`` and its submodules loads into a fresh interpreter."""
    command = [sys.executable, "-c", PROBE, package]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0, result.stderr
    return set(json.loads(result.stdout))


def top_levels(modules: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules}


def exists(package: str) -> bool:
    path = ROOT.joinpath(*package.split("."))
    return (path / "__init__.py").exists() or path.with_suffix(".py").exists()


@pytest.mark.parametrize("package", ["core", "scheduler", "memory"])
def test_pure_packages_bring_in_the_standard_library_and_core(package: str) -> None:
    modules = brought_in(f"aegaeon.{package}")
    assert f"aegaeon.{package}" in modules
    assert top_levels(modules) - {"aegaeon"} <= sys.stdlib_module_names
    inner = {name.split(".")[1] for name in modules if name.startswith("aegaeon.")}
    assert inner <= {"core", package}
    assert not {"torch", "ray", "numpy"} & top_levels(modules)


@pytest.mark.parametrize("process", ["frontend", "instance"])
def test_the_cores_of_the_runtime_bring_in_no_device_no_ring_and_no_loop(process: str) -> None:
    modules = brought_in(f"aegaeon.runtime.{process}.core")
    assert f"aegaeon.runtime.{process}.core" in modules
    assert not {"asyncio", "mmap", "numpy", "ray", "selectors", "socket", "torch", "transformers"} & top_levels(modules)
    assert "aegaeon.device" not in modules


def test_a_drivers_core_brings_in_nothing_that_does_anything() -> None:
    modules = brought_in("aegaeon.runtime.node.core")
    assert top_levels(modules) - {"aegaeon", "quick_model_loader"} <= sys.stdlib_module_names
    assert not {"select", "selectors", "socket", "mmap"} & top_levels(modules)
    inner = {one for one in modules if one.startswith(("aegaeon.engine.", "aegaeon.device", "aegaeon.runtime.wire."))}
    assert inner == {
        "aegaeon.engine.sampling",
        "aegaeon.engine.sampling.stop",
        "aegaeon.runtime.wire.messages",
        "aegaeon.runtime.wire.model_failure",
        "aegaeon.runtime.wire.pulse_reading",
    }


@pytest.mark.parametrize("package", ["sim", "aegaeon.workload"])
def test_the_simulated_world_brings_in_neither_torch_nor_ray_nor_the_runtime(package: str) -> None:
    if not exists(package):
        pytest.skip(f"{package} is not part of this tree")
    modules = brought_in(package)
    assert not {"torch", "ray", "transformers", "fastapi"} & top_levels(modules)
    assert not {f"aegaeon.{name}" for name in ("device", "engine", "runtime", "server")} & modules


def test_the_probe_sees_what_a_submodule_brings_in() -> None:
    assert "torch" in top_levels(brought_in("aegaeon.device"))
