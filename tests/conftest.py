"""What all tests share: no test depends on how fast the machine is.

Triton kernels run on the CPU here: its interpreter must be chosen before anything imports Triton. Likewise the number
of threads that compute, before anything imports torch: on cores that others use too, threads that share a tiny tensor
wait for each other ten times as long as they compute. Instances have as many as their options say.
"""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.worlds.pool_fixtures import hybrid_paths, model_paths, pool

__all__ = ["hybrid_paths", "model_paths", "pool"]

settings.register_profile("aegaeon", deadline=None)
settings.load_profile("aegaeon")


@pytest.fixture(scope="session", autouse=True)
def _kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Services keep what they found of models for the next ones of this session, and nothing beyond it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AEGAEON_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whoever has a model made waits for torch. Files that take long begin first: else the last one runs alone."""
    for item in items:
        if {"model_paths", "hybrid_paths"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.models)
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
