"""Find out what the models of a configuration are, and make them loadable: once, at start."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import quick_model_loader as qml
from aegaeon.checkpoint_folder import FolderError, check_folder
from aegaeon.core.config import ModelConfig
from aegaeon.core.model import ModelSpec
from aegaeon.engine.architecture.architecture import check_layer_counts, inspect_model
from aegaeon.engine.architecture.image import ensure_image, needs_image
from aegaeon.engine.errors import CheckpointError, ModelError
from aegaeon.engine.prepared.fingerprint import config_fingerprint, files_fingerprint, weights_fingerprint
from aegaeon.engine.prepared.prepared_model import Findings, PreparedModel, RefusedModel
from aegaeon.json_file import JsonFileError, read_object

logger = logging.getLogger(__name__)


def prepare_models(configs: Iterable[ModelConfig], block_tokens: int, cache_dir: Path | None) -> Findings:
    """Inspect every model, and convert what cannot be bound as it is; bad ones do not stop the others."""
    prepared, refused = [], []
    for config in configs:
        try:
            prepared.append(_prepare(config, block_tokens, cache_dir))
        except (FolderError, JsonFileError, ModelError, CheckpointError, qml.LoaderError, OSError) as error:
            refused.append(RefusedModel(config, str(error)))
        except Exception as error:  # A checkpoint is anybody's, and much code of others looks at it.
            logger.exception("model %s: looking at %s failed in a way that nobody foresaw", config.name, config.path)
            refused.append(RefusedModel(config, f"looking at {config.path} failed: {type(error).__name__}: {error}"))
    return prepared, refused


def _prepare(config: ModelConfig, block_tokens: int, cache_dir: Path | None) -> PreparedModel:
    tensors = len(check_folder(config.path).tensors)  # bad weights are refused now, not when the first request comes
    files = files_fingerprint(config.path)
    check_layer_counts(config.path, read_object(config.path / "config.json"), tensors)
    facts = inspect_model(
        config.path, max_context_tokens=config.max_context_tokens, dtype=config.dtype, block_tokens=block_tokens
    )
    reason = needs_image(config.path, facts.dtype)
    path = config.path if reason is None else _image(config.path, cache_dir, facts.dtype)
    spec = ModelSpec(
        config.name,
        qml.inspect(path).buffer_bytes,
        facts.kv_shape,
        facts.max_context_tokens,
        config.slo,
    )
    notes = [f"image: {reason}"] * (reason is not None) + list(facts.notes)
    fingerprint, weights = config_fingerprint(config.path), weights_fingerprint(path)
    return PreparedModel(config, path, facts, spec, "; ".join(notes), fingerprint, files, weights)


def _image(path: Path, cache_dir: Path | None, dtype: str) -> Path:
    if cache_dir is None:
        raise CheckpointError("it must be converted once, and there is no home folder to keep that in: set --cache-dir")
    try:
        return ensure_image(path, cache_dir, dtype)
    except CheckpointError as error:
        if isinstance(error.__cause__, OSError):
            raise CheckpointError(f"{error}; choose another folder with --cache-dir") from error
        raise
