"""Look whether a model that failed could be used again: a thread that reads its folder, which may be slow or hang."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import quick_model_loader as qml
from aegaeon.engine.errors import CheckpointError
from aegaeon.engine.prepared.fingerprint import config_fingerprint, files_fingerprint
from aegaeon.runtime.wire.model_failure import FailureKind, ModelFailure, ModelProblem, failure_kind

_SUFFIXES = (".json", ".safetensors")
_FileState = tuple[str, int, int, int]

NeedsImage = Callable[[Path, str], str | None]
"""``needs_image(path, dtype)``: why a model directory could not be bound as it is, or None."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ExaminedModel:
    """Where a model's configuration and its weights are (the same folder, or an image's), the room it has, the
    configuration and the files that it was prepared by, and the float type that its weights are wanted in."""

    config_path: Path
    weights_path: Path
    weight_bytes: int
    fingerprint: str
    files: str
    dtype: str


class ModelExaminer:
    """Remembers how the models' files were when it began, and whenever it examined them."""

    def __init__(self, models: Mapping[str, ExaminedModel], needs_image: NeedsImage) -> None:
        self._models = models
        self._needs_image = needs_image
        self._seen = {name: _signature(model) for name, model in models.items()}
        self._thread = ThreadPoolExecutor(1, "examine-models")

    def examine(self, failure: ModelFailure, done: Callable[[ModelProblem | None], None]) -> None:
        """Have ``done`` called, on a thread, with what is wrong still; None where the model may be tried again."""
        self._thread.submit(lambda: done(self._problem(failure)))

    def close(self) -> None:
        """Not waited for: it may hang in a folder that does not answer."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _problem(self, failure: ModelFailure) -> ModelProblem | None:
        if failure.kind is FailureKind.KILLS:
            return None  # there is nothing that could be looked at
        model = self._models[failure.model]
        before, self._seen[failure.model] = self._seen[failure.model], _signature(model)
        if failure.kind is FailureKind.FILES and before == self._seen[failure.model]:
            return ModelProblem(failure.reason, failure.kind)
        try:
            return self._mismatch(failure.model, model)
        except (qml.LoaderError, OSError, CheckpointError) as error:
            return ModelProblem(f"cannot load model {failure.model}: {error}", failure_kind(error))
        except Exception as error:  # whatever it is, the model must be looked at again
            logger.exception("model %s cannot be examined", failure.model)
            return ModelProblem(f"model {failure.model} cannot be examined: {error}", FailureKind.TRANSIENT)

    def _mismatch(self, name: str, model: ExaminedModel) -> ModelProblem | None:
        """What was settled when the service started must still hold. Raises ``LoaderError``, ``OSError`` or
        ``CheckpointError``."""
        needed_bytes = qml.inspect(model.weights_path).buffer_bytes
        reason = None
        if config_fingerprint(model.config_path) != model.fingerprint or needed_bytes > model.weight_bytes:
            reason = "holds another model than when the service started"
        elif unfit := self._unfit(model):
            reason = f"must be converted, unlike when the service started ({unfit})"
        if reason is None:
            return None
        return ModelProblem(f"model {name}: {model.config_path} {reason}; restart it to serve that", FailureKind.FILES)

    def _unfit(self, model: ExaminedModel) -> str | None:
        """Images, and files that are as they were when the service started, need not be looked at."""
        if model.weights_path != model.config_path or files_fingerprint(model.config_path) == model.files:
            return None
        return self._needs_image(model.config_path, model.dtype)


def _signature(model: ExaminedModel) -> frozenset[_FileState]:
    """Names, sizes, times and numbers of the files that matter; empty where the folder cannot be read."""
    return frozenset(state for path in {model.config_path, model.weights_path} for state in _files(path))


def _files(path: Path) -> Iterator[_FileState]:
    try:
        for file in [path] if path.is_file() else path.iterdir():
            if file.suffix in _SUFFIXES:
                state = file.stat()
                yield str(file), state.st_size, state.st_mtime_ns, state.st_ino
    except OSError:
        return
