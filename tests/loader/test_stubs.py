"""The stubs describe the module that is really there."""

import ast
import inspect
import subprocess
import sys
from importlib import resources
from pathlib import Path

import quick_model_loader
from quick_model_loader import _native, errors

BUFFER_PROTOCOL = {"__buffer__", "__release_buffer__"}
"""How stubs say so; the runtime has these names since Python 3.12 only."""


def test_stubs_and_runtime_have_the_same_names_and_parameters() -> None:
    stub = ast.parse((resources.files(quick_model_loader) / "_native.pyi").read_text())
    declared: set[str] = set()
    for node in stub.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            declared.add(node.target.id)
        elif isinstance(node, ast.FunctionDef):
            declared.add(node.name)
            assert parameters(node) == list(inspect.signature(getattr(_native, node.name)).parameters)
        elif isinstance(node, ast.ClassDef):
            declared.add(node.name)
            check_class(node, getattr(_native, node.name))
    present = {name for name in dir(_native) if not name.startswith("__")} | {"__version__"}
    assert declared == present


def check_class(node: ast.ClassDef, runtime: type) -> None:
    methods = {method.name: method for method in node.body if isinstance(method, ast.FunctionDef)}
    assert {name for name in methods if not name.startswith("__")} == {
        name for name in dir(runtime) if not name.startswith("_")
    }
    for name, method in methods.items():
        if name in BUFFER_PROTOCOL:
            continue
        attribute = inspect.getattr_static(runtime, name)
        is_property = any(isinstance(mark, ast.Name) and mark.id == "property" for mark in method.decorator_list)
        assert is_property == inspect.isgetsetdescriptor(attribute), name
        if not is_property and not name.startswith("__"):
            assert parameters(method) == list(inspect.signature(attribute).parameters), name


def parameters(function: ast.FunctionDef) -> list[str]:
    arguments = function.args
    return [argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]


def test_everything_public_is_exported_and_documented() -> None:
    for name in quick_model_loader.__all__:
        item = getattr(quick_model_loader, name)
        if callable(item):
            assert item.__doc__, name
    assert set(errors.__all__) < set(quick_model_loader.__all__)


def test_mypys_stubtest_agrees(tmp_path: Path) -> None:
    (tmp_path / "mypy.ini").write_text("[mypy]\n[mypy-torch.*]\nfollow_imports = skip\n")  # half a minute to read
    allowed = tmp_path / "allowed"
    lines = [r"quick_model_loader\._native\.__all__"]
    if sys.version_info < (3, 12):
        lines += [rf"quick_model_loader\._native\..*\.{name}" for name in BUFFER_PROTOCOL]
    allowed.write_text("\n".join(lines))
    command = [sys.executable, "-m", "mypy.stubtest", "quick_model_loader._native", "--concise"]
    command += ["--mypy-config-file", str(tmp_path / "mypy.ini")]
    done = subprocess.run(
        [*command, "--allowlist", str(allowed)], capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
