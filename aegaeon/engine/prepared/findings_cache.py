"""What was found of models, kept for later starts: files that have not changed need not be looked at again.

An entry counts only where everything is as it was when it was written: the model's files, what was asked of them, the
image made of them, and the code that looked, ours and that of others. It is read as JSON and carries its own digest,
so that what is damaged, or of somebody else, is no entry at all.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from aegaeon.core.config import ModelConfig
from aegaeon.core.kv_shape import KvShape, LayerKv, LayerState
from aegaeon.core.model import ModelSpec
from aegaeon.engine.prepared.engine_facts import EngineFacts
from aegaeon.engine.prepared.fingerprint import files_fingerprint, weights_fingerprint
from aegaeon.engine.prepared.prepared_model import PreparedModel
from aegaeon.json_file import read_object

logger = logging.getLogger(__name__)

_LOOKED_BY = Path(__file__).parents[2]  # all our sources
_LIBRARIES = ("tokenizers", "torch", "transformers")


class FindingsCache:
    """A folder with a file for each model and what was asked of it; None keeps nothing."""

    def __init__(self, folder: Path | None, block_tokens: int) -> None:
        self._folder = folder
        self._block_tokens = block_tokens

    def get(self, config: ModelConfig) -> PreparedModel | None:
        """What is known of a model, if it still holds."""
        if self._folder is None:
            return None
        try:
            entry = read_object(self._file(self._folder, config))
            found = entry["found"]
            if entry["digest"] != _digest(found) or found["asked"] != self._asked(config):
                return None
            return _model(config, found) if _holds(config, found) else None
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return None

    def put(self, model: PreparedModel) -> None:
        """Keep what was found; where it cannot be written it is looked for again next time."""
        if self._folder is None:
            return
        try:
            found = {
                "asked": self._asked(model.config),
                "looked_by": looked_by(),
                "files": model.files,
                "image": None if model.path == model.config.path else str(model.path),
                "image_files": None if model.path == model.config.path else files_fingerprint(model.path),
                "facts": asdict(model.facts),
                "weight_bytes": model.spec.weight_bytes,
                "note": model.note,
                "fingerprint": model.fingerprint,
            }
            self._folder.mkdir(parents=True, exist_ok=True)
            file = self._file(self._folder, model.config)
            part = file.with_suffix(f".part-{os.getpid()}")
            try:
                part.write_text(json.dumps({"digest": _digest(found), "found": found}))
                part.replace(file)
            finally:
                part.unlink(missing_ok=True)
        except OSError as error:
            logger.info("what is known of model %s is not kept: %s", model.spec.name, error)

    def _file(self, folder: Path, config: ModelConfig) -> Path:
        return folder / f"{config.path.name}-{_digest(self._asked(config))[:16]}.json"

    def _asked(self, config: ModelConfig) -> list[Any]:
        wanted = config.max_context_tokens, config.dtype, config.chat_template, self._block_tokens
        return [str(config.path.resolve()), *wanted]


def _holds(config: ModelConfig, found: Mapping[str, Any]) -> bool:
    """Whether nothing has changed since. Raises ``OSError`` where the files cannot be looked at."""
    image = found["image"]
    return (
        found["looked_by"] == looked_by()
        and found["files"] == files_fingerprint(config.path)
        and (image is None or found["image_files"] == files_fingerprint(Path(image)))
    )


def _model(config: ModelConfig, found: Mapping[str, Any]) -> PreparedModel:
    path = config.path if found["image"] is None else Path(found["image"])
    facts = _facts(found["facts"])
    spec = ModelSpec(config.name, found["weight_bytes"], facts.kv_shape, facts.max_context_tokens, config.slo)
    note, fingerprint, files = found["note"], found["fingerprint"], found["files"]
    return PreparedModel(config, path, facts, spec, note, fingerprint, files, weights_fingerprint(path))


def _facts(values: Mapping[str, Any]) -> EngineFacts:
    kv = values["kv_shape"]
    tuples = {name: tuple(values[name]) for name in ("eos_token_ids", "notes")}
    layers = tuple(LayerKv(**layer) for layer in kv["layers"])
    states = tuple(LayerState(**{**state, "shape": tuple(state["shape"])}) for state in kv["states"])
    shape = KvShape(**{**kv, "layers": layers, "states": states})
    return EngineFacts(**{**values, **tuples, "kv_shape": shape})


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@cache
def looked_by() -> str:
    """The code that looks at models: another one may find something else, or refuse what this one served."""
    digest = hashlib.sha256()
    for library in _LIBRARIES:
        digest.update(metadata.version(library).encode())
    for source in sorted(_LOOKED_BY.rglob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()
