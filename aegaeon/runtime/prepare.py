"""Find out what the models of a configuration are, and make them loadable: once, at start."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import quick_model_loader as qml
from aegaeon.core.config import ModelConfig
from aegaeon.core.model import ModelSpec
from aegaeon.engine.architecture import ModelFacts, inspect_model
from aegaeon.engine.errors import ModelError
from aegaeon.engine.image import ensure_image, needs_image
from aegaeon.engine.safetensors_file import CheckpointError


@dataclass(frozen=True, slots=True)
class PreparedModel:
    """A model that can be served: ``path`` is its directory or the image made of it."""

    config: ModelConfig
    path: Path
    facts: ModelFacts
    spec: ModelSpec
    note: str


@dataclass(frozen=True, slots=True)
class RefusedModel:
    """A model that cannot, and why."""

    config: ModelConfig
    reason: str


def prepare_models(
    configs: Iterable[ModelConfig], block_tokens: int, cache_dir: Path | None
) -> tuple[list[PreparedModel], list[RefusedModel]]:
    """Inspect every model, and convert what cannot be bound as it is; bad ones do not stop the others."""
    prepared, refused = [], []
    for config in configs:
        try:
            prepared.append(_prepare(config, block_tokens, cache_dir))
        except (ModelError, CheckpointError, qml.LoaderError, OSError) as error:
            refused.append(RefusedModel(config, str(error)))
    return prepared, refused


def _prepare(config: ModelConfig, block_tokens: int, cache_dir: Path | None) -> PreparedModel:
    facts = inspect_model(
        config.path, max_context_tokens=config.max_context_tokens, dtype=config.dtype, block_tokens=block_tokens
    )
    qml.inspect(config.path)  # bad weights are refused now, not when the first request comes
    reason = needs_image(config.path, facts.dtype)
    path = config.path if reason is None else _image(config.path, cache_dir, facts.dtype)
    spec = ModelSpec(
        config.name,
        qml.inspect(path).buffer_bytes,
        facts.kv_shape,
        facts.max_context_tokens,
        config.slo,
    )
    return PreparedModel(config, path, facts, spec, f"image: {reason}" if reason else "")


def _image(path: Path, cache_dir: Path | None, dtype: str) -> Path:
    if cache_dir is None:
        raise CheckpointError("it must be converted once, and there is no home folder to keep that in: set --cache-dir")
    try:
        return ensure_image(path, cache_dir, dtype)
    except CheckpointError as error:
        if isinstance(error.__cause__, OSError):
            raise CheckpointError(f"{error}; choose another folder with --cache-dir") from error
        raise
