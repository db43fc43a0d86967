"""What the engine's tests share.

Triton kernels run on the CPU here: its interpreter must be chosen before anything imports Triton.
"""

from __future__ import annotations

import os

os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest

from tests.engine.zoo import TinyModel, Zoo, build


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """Tiny models by name, each built once."""
    folder = tmp_path_factory.mktemp("zoo")
    built: dict[str, TinyModel] = {}

    def find(name: str) -> TinyModel:
        if name not in built:
            built[name] = build(name, folder)
        return built[name]

    return find
