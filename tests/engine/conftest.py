"""What the engine's tests share."""

from __future__ import annotations

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
