"""Models that a driver has looked at: by a process of its own, where they are not known already."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aegaeon.core.config import ModelConfig
from aegaeon.engine.architecture.image import needs_image
from aegaeon.engine.errors import CheckpointError
from aegaeon.runtime.cluster.inspector import MODULES, Inspector
from aegaeon.runtime.inspection import inspect_models
from aegaeon.runtime.process.fork_server import ForkServer
from aegaeon.runtime.process.process_log import LogPlace


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    log = tmp_path_factory.mktemp("forks") / "log"
    pids: list[int] = []
    server = ForkServer("forks", LogPlace(file=log), ("aegaeon.runtime.instance.worker", *MODULES), pids.append)
    yield server
    threads = list(Path(f"/proc/{pids[0]}/task").iterdir())
    server.close()
    assert len(pids) == len(threads) == 1, "with other threads it must not fork"


@pytest.fixture
def inspector(tmp_path: Path, forks: ForkServer) -> Inspector:
    return Inspector("test", LogPlace(file=tmp_path / "log"), forks)


def test_it_finds_what_there_is_once_and_in_order(
    model_paths: Callable[[int], dict[str, Path]],
    tmp_path: Path,
    inspector: Inspector,
    forks: ForkServer,
    monkeypatch: pytest.MonkeyPatch,
):
    paths = model_paths(3)
    unknown = shutil.copytree(paths["m1"], tmp_path / "unknown")
    (unknown / "config.json").write_text('{"model_type": "nobody-has-heard-of"}')
    (tmp_path / "empty").mkdir()
    named = {"none": tmp_path / "empty", "b": paths["m1"], "unknown": unknown, "a": paths["m0"]}
    configs = [ModelConfig(name, path) for name, path in named.items()]
    expected = inspect_models(configs, 16, tmp_path / "others")
    assert inspector.prepare(configs, 16, tmp_path / "cache") == expected
    good, bad = expected
    assert ([model.config.name for model in good], [model.config.name for model in bad]) == (
        ["b", "a"],
        ["none", "unknown"],
    )

    def no_process(*_: object, **__: object) -> None:
        raise AssertionError("there is nothing to look at")

    monkeypatch.setattr(forks, "start", no_process)
    known = [config for config in configs if config.name != "unknown"]
    assert inspector.prepare(known, 16, tmp_path / "cache") == (good, bad[:1])


def test_it_says_why_a_model_could_not_be_bound_as_it_is(
    model_paths: Callable[[int], dict[str, Path]], tmp_path: Path, inspector: Inspector
):
    path = model_paths(1)["m0"]
    assert inspector.needs_image(path, "bfloat16") == needs_image(path, "bfloat16")
    broken = shutil.copytree(path, tmp_path / "broken")
    (broken / "config.json").write_text('{"model_type": "nobody-has-heard-of"}')
    with pytest.raises(CheckpointError, match="nobody-has-heard-of"):
        inspector.needs_image(broken, "float32")
