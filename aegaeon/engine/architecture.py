"""The gate: what a model directory is, and whether the engine runs it right.

Cheap: modules are built on the meta device and two tokens go through them (``dry_run``); no weight is read.

Does not know: weights, instances.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from aegaeon.core.kv_shape import KvShape, LayerKv
from aegaeon.engine import dry_run
from aegaeon.engine.attention import AttentionContractError
from aegaeon.engine.errors import UnsupportedModelError
from aegaeon.engine.rope import pin_types
from aegaeon.engine.skeleton import architecture, build_skeleton, float_dtype, load_config

_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length")


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the control plane must know of a model. ``dtype`` is a name, such as ``bfloat16``."""

    architecture: str
    parameters: int
    weight_bytes: int
    kv_shape: KvShape
    max_context_tokens: int
    eos_token_ids: tuple[int, ...]
    vocab_size: int
    dtype: str


def inspect_model(
    path: Path, *, max_context_tokens: int | None = None, dtype: str | None = None, block_tokens: int = 16
) -> ModelFacts:
    """Facts of a model directory. Raises ``UnsupportedModelError`` with the reason if it cannot be served.

    ``max_context_tokens`` may lower the configuration's limit, or give one where there is none.
    """
    config = load_config(path)
    name = architecture(config)
    _require_safetensors(path, name)
    float_type = float_dtype(path, config, dtype)
    dry_run.register()
    model = build_skeleton(path, config, float_type, dry_run.IMPLEMENTATION)
    layers = _attention_layers(path, name, model)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if not parameters:
        raise UnsupportedModelError(path, name, "it has no parameters")
    text_config = config.get_text_config()
    return ModelFacts(
        architecture=name,
        parameters=parameters,
        weight_bytes=_weight_bytes(model),
        kv_shape=KvShape(layers, float_type.itemsize, block_tokens),
        max_context_tokens=_context_limit(path, name, text_config, max_context_tokens),
        eos_token_ids=_eos_token_ids(path, name, text_config),
        vocab_size=text_config.vocab_size,
        dtype=str(float_type).removeprefix("torch."),
    )


def _require_safetensors(path: Path, name: str) -> None:
    if not any((path / file).is_file() for file in ("model.safetensors", "model.safetensors.index.json")):
        reason = "it has no safetensors weights; save other formats again with save_pretrained"
        raise UnsupportedModelError(path, name, reason)


def _attention_layers(path: Path, name: str, model: nn.Module) -> tuple[LayerKv, ...]:
    pin_types(model)
    try:
        return dry_run.attention_layers(model)
    except AttentionContractError as error:
        raise UnsupportedModelError(path, name, str(error)) from error


def _weight_bytes(model: nn.Module) -> int:
    """Bytes of parameters and persistent buffers; tied ones count once."""
    tensors = {id(tensor): tensor for tensor in model.state_dict(keep_vars=True).values()}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _context_limit(path: Path, name: str, config: Any, wanted: int | None) -> int:
    limits = [getattr(config, key, None) for key in _CONTEXT_KEYS]
    limit = next((value for value in limits if isinstance(value, int) and value > 0), None)
    if wanted is None and limit is None:
        raise UnsupportedModelError(path, name, "its config.json names no context length, set max_context_tokens")
    if wanted is not None and (wanted < 1 or (limit is not None and wanted > limit)):
        allowed = f"between 1 and {limit}" if limit is not None else "at least 1"
        raise UnsupportedModelError(path, name, f"max_context_tokens must be {allowed}, got {wanted}")
    return wanted or limit or 0


def _eos_token_ids(path: Path, name: str, config: Any) -> tuple[int, ...]:
    """The generation configuration's, else the configuration's; there may be none."""
    found = _generation_config(path, name).get("eos_token_id")
    if found is None:
        found = getattr(config, "eos_token_id", None)
    ids = found if isinstance(found, list) else [found]
    return tuple(token for token in ids if isinstance(token, int) and token >= 0)


def _generation_config(path: Path, name: str) -> dict[str, Any]:
    file = path / "generation_config.json"
    try:
        values = json.loads(file.read_bytes()) if file.exists() else {}
    except (OSError, ValueError) as error:
        raise UnsupportedModelError(path, name, f"its {file.name} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise UnsupportedModelError(path, name, f"its {file.name} is not a JSON object")
    return values
