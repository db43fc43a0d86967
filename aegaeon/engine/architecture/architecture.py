"""The gate: what a model directory is, and whether the engine runs it right.

Cheap: modules are built on the meta device and two tokens go through them (``dry_run``); no weight is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from aegaeon.core.kv_shape import KvShape, LayerKv, LayerState
from aegaeon.engine.architecture import dry_run
from aegaeon.engine.architecture.building import building
from aegaeon.engine.architecture.rope import pin_types
from aegaeon.engine.architecture.skeleton import architecture, build_skeleton, float_dtype, load_config
from aegaeon.engine.attention.attention import AttentionContractError
from aegaeon.engine.checkpoint.config_numbers import MOST_CONTEXT_TOKENS, wrong_number
from aegaeon.engine.checkpoint.context_limit import context_limit
from aegaeon.engine.checkpoint.generation_defaults import read_generation_defaults
from aegaeon.engine.errors import UnsupportedModelError
from aegaeon.engine.prepared.engine_facts import EngineFacts

_STATE_BLOCKS = (16, 32, 64, 128)
"""Blocks with states are so many times as large as others: 256 to 2048 tokens for 16."""

_LAYER_KEYS = frozenset({"num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers"})


def inspect_model(
    path: Path, *, max_context_tokens: int | None = None, dtype: str | None = None, block_tokens: int = 16
) -> EngineFacts:
    """Facts of a model directory. Raises ``UnsupportedModelError`` with the reason if it cannot be served.

    ``max_context_tokens`` may lower the configuration's limit, or give one where there is none; where rotary positions
    are scaled it may go up to what they are scaled to.
    """
    config = load_config(path)
    name = architecture(config)
    _require_safetensors(path, name)
    if wrong := wrong_number(config.get_text_config()):
        raise UnsupportedModelError(path, name, f"its config.json says {wrong}, which cannot be")
    float_type = float_dtype(path, config, dtype)
    dry_run.register()
    with building():
        model = build_skeleton(path, config, float_type, dry_run.IMPLEMENTATION)
        layers, states = _cached_layers(path, name, model)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if not parameters:
        raise UnsupportedModelError(path, name, "it has no parameters")
    text_config = config.get_text_config()
    generation = read_generation_defaults(path, name, text_config)
    return EngineFacts(
        architecture=name,
        parameters=parameters,
        weight_bytes=_weight_bytes(model),
        kv_shape=_kv_shape(layers, states, float_type.itemsize, block_tokens),
        max_context_tokens=_context_tokens(path, name, text_config, max_context_tokens),
        eos_token_ids=generation.eos_token_ids,
        vocab_size=text_config.vocab_size,
        dtype=str(float_type).removeprefix("torch."),
        sampling_defaults=generation.sampling,
        notes=generation.notes,
    )


def check_layer_counts(path: Path, values: Mapping[str, Any], stored_tensors: int) -> None:
    """Refuse a configuration that names more layers than its files hold tensors, before anything is built.

    ``values``: of ``config.json``. Raises ``UnsupportedModelError``.
    """
    for key, count in _layer_counts(values):
        if count > stored_tensors:
            reason = f"its config.json says {key} {count}, its files hold {stored_tensors} tensors in all"
            raise UnsupportedModelError(path, "", reason)


def _layer_counts(values: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _layer_counts(value)
        elif key in _LAYER_KEYS and isinstance(value, int):
            yield key, value


def _require_safetensors(path: Path, name: str) -> None:
    if not any((path / file).is_file() for file in ("model.safetensors", "model.safetensors.index.json")):
        reason = "it has no safetensors weights; save other formats again with save_pretrained"
        raise UnsupportedModelError(path, name, reason)


def _cached_layers(path: Path, name: str, model: nn.Module) -> tuple[tuple[LayerKv, ...], tuple[LayerState, ...]]:
    pin_types(model)
    try:
        return dry_run.cached_layers(model)
    except AttentionContractError as error:
        raise UnsupportedModelError(path, name, str(error)) from error


def _kv_shape(
    layers: tuple[LayerKv, ...], states: tuple[LayerState, ...], element_bytes: int, block_tokens: int
) -> KvShape:
    """Blocks with states are larger: a state should not weigh more than the keys and values before it, and prompts are
    not to be fed in small pieces for the sake of their states."""
    if not states:
        return KvShape(layers, element_bytes, block_tokens)
    shapes = [KvShape(layers, element_bytes, block_tokens * times, states) for times in _STATE_BLOCKS]
    return next((shape for shape in shapes if 2 * shape.kv_bytes >= shape.block_bytes), shapes[-1])


def _weight_bytes(model: nn.Module) -> int:
    """Bytes of parameters and persistent buffers; tied ones count once."""
    tensors = {id(tensor): tensor for tensor in model.state_dict(keep_vars=True).values()}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _context_tokens(path: Path, name: str, config: Any, wanted: int | None) -> int:
    limit = context_limit(config)
    if limit is None:
        if wanted is None:
            raise UnsupportedModelError(path, name, "its config.json names no context length, set max_context_tokens")
        return wanted
    if limit.most_tokens > MOST_CONTEXT_TOKENS:
        reason = f"its config.json says a context of more than {MOST_CONTEXT_TOKENS} tokens, which cannot be"
        raise UnsupportedModelError(path, name, reason)
    if wanted is not None and not 1 <= wanted <= limit.most_tokens:
        allowed = f"between 1 and {limit.most_tokens}"
        raise UnsupportedModelError(path, name, f"max_context_tokens must be {allowed}, got {wanted}")
    return wanted or limit.usual_tokens
