"""Models built by two threads at once come out as each would alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.utils import logging

from aegaeon.engine.architecture import building as module
from aegaeon.engine.architecture.architecture import inspect_model
from aegaeon.engine.architecture.image import ensure_image, needs_image
from aegaeon.engine.step.model import Model
from tests.engine.zoo import ARCHITECTURES, reference

TIED = "gemma2-cap-window"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with tied embeddings, stored in bfloat16."""
    path = tmp_path_factory.mktemp("models") / "tied"
    reference(ARCHITECTURES[TIED](), torch.bfloat16).save_pretrained(path)
    return path


def bound_as(path: Path, _: Path) -> Any:
    return Model(path, dtype="float16").tensors


def inspected(path: Path, _: Path) -> Any:
    return inspect_model(path, dtype="float32")


def checked(path: Path, _: Path) -> Any:
    return needs_image(path, "float32")


def converted(path: Path, scratch: Path) -> Any:
    image = ensure_image(path, scratch / threading.current_thread().name, "float32")
    return (image / "model.safetensors").read_bytes()


JOBS = [bound_as, inspected, checked, converted]


class WatchedLock:
    """A lock that tells when a thread comes to it, before that thread has to wait."""

    def __init__(self, arrived: Callable[[], None]) -> None:
        self._lock, self._arrived = threading.RLock(), arrived

    def __enter__(self) -> None:
        self._arrived()
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


@pytest.mark.parametrize("second", JOBS)
@pytest.mark.parametrize("first", JOBS)
def test_two_threads_build_one_after_the_other(
    first: Callable, second: Callable, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second thread comes while the first is in the middle of a model's constructor."""
    expected = [job(checkpoint, tmp_path / "alone") for job in (first, second)]
    results: dict[str, Any] = {}
    inside: list[str] = []
    came = threading.Event()
    threads = {
        name: threading.Thread(
            target=lambda name=name, job=job: results.update({name: job(checkpoint, tmp_path)}), name=name
        )
        for name, job in (("first", first), ("second", second))
    }

    def arrive() -> None:
        if threading.current_thread() is threads["second"]:
            came.set()

    constructor = transformers.Gemma2ForCausalLM.__init__

    def construct(self: Any, *args: Any, **kwargs: Any) -> None:
        arrive()
        inside.append(threading.current_thread().name)
        if inside == ["first"]:
            threads["second"].start()
            assert came.wait(60), "the second thread is on its way"
        constructor(self, *args, **kwargs)
        inside.append(f"{threading.current_thread().name} is done")

    monkeypatch.setattr(module, "_lock", WatchedLock(arrive))
    monkeypatch.setattr(transformers.Gemma2ForCausalLM, "__init__", construct)
    threads["first"].start()
    for thread in threads.values():
        thread.join(60)
    began, ended = inside[::2], inside[1::2]
    assert ended == [f"{name} is done" for name in began]
    assert {"first", "second"} == set(began)
    assert [results["first"], results["second"]] == expected
    assert torch.get_default_dtype() is torch.float32
    assert logging.get_verbosity() == logging.WARNING
