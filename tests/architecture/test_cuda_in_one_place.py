"""Where CUDA may be named: torch's part and NVIDIA's bindings stay behind the device's own files."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path.relative_to(ROOT)
    for folder in ("aegaeon", "benchmark", "plots", "sim")
    for path in (ROOT / folder).rglob("*.py")
)


def uses_of_torch_cuda(source: str) -> Iterator[int]:
    """Lines that say ``torch.cuda`` in code, or import from it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr == "cuda" and isinstance(node.value, ast.Name):
            if node.value.id == "torch":
                yield node.lineno
        elif (isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch.cuda")) or (
            isinstance(node, ast.Import) and any(alias.name.startswith("torch.cuda") for alias in node.names)
        ):
            yield node.lineno


def bindings_named(source: str) -> bool:
    texts = (node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant))
    return any(isinstance(text, str) and text.startswith("cuda.bindings.") for text in texts)


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_torch_cuda_is_used_in_the_cuda_backend_only(path: Path) -> None:
    allowed = path.parent == Path("aegaeon/device/cuda")
    assert allowed or not list(uses_of_torch_cuda((ROOT / path).read_text()))


def test_the_bindings_are_imported_in_one_file() -> None:
    naming = [path for path in SOURCES if bindings_named((ROOT / path).read_text())]
    assert naming == [Path("aegaeon/device/cuda/bindings.py")]


@pytest.mark.parametrize(
    "source", ["import torch\ntorch.cuda.init()", "from torch.cuda import Stream", "import torch.cuda as c"]
)
def test_the_search_finds_what_it_looks_for(source: str) -> None:
    assert list(uses_of_torch_cuda(source))
