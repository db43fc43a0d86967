"""A model's modules without memory for weights.

Any class that Transformers maps a configuration to for causal language modelling is built on the meta device, with its
attention set to ours. There is no list of architectures.
"""

from __future__ import annotations

import re
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM

from aegaeon.engine.architecture.building import building
from aegaeon.engine.architecture.quiet import quiet_transformers
from aegaeon.engine.attention import attention
from aegaeon.engine.checkpoint.quantization import quantization
from aegaeon.engine.checkpoint.stored_tensor import stored_float_dtype, stored_tensors
from aegaeon.engine.errors import CheckpointError, UnsupportedModelError
from aegaeon.json_file import JsonFileError, read_object

_WRONG_CONFIGURATION = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    RuntimeError,
    ImportError,
    StrictDataclassError,
)
"""What Transformers and torch raise, depending on where they stumble over a configuration's values."""

_MAX_LAYERS = 4096
"""More are a mistake, and would take forever to build."""

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def load_config(path: Path) -> Any:
    """The model's configuration. Raises ``UnsupportedModelError``."""
    file = path / "config.json"
    if not file.exists() and not file.is_symlink():
        raise UnsupportedModelError(path, "", "it is no model directory, it has no config.json")
    try:
        values = read_object(file)
    except JsonFileError as error:
        raise UnsupportedModelError(path, "", f"its {file.name} {error.reason}") from error
    named = values.get("architectures")
    who = str(named[0]) if isinstance(named, list) and named else str(values.get("model_type") or "")
    if quantized := quantization(path, values):
        raise UnsupportedModelError(
            path, who, f"it is quantized ({quantized}), only unquantized checkpoints can be served"
        )
    try:
        with quiet_transformers():
            return AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except _WRONG_CONFIGURATION as error:
        hint = "it needs code from outside, which is never run" if "auto_map" in values else "its config.json is wrong"
        raise UnsupportedModelError(path, who, f"{hint}: {_first_line(error)}") from error


def float_dtype(path: Path, config: Any, wanted: str | None) -> torch.dtype:
    """The dtype to run in: ``wanted``, else the configuration's, else that of the stored weights.

    Raises ``UnsupportedModelError``.
    """
    if wanted is None:
        configured = getattr(config, "dtype", None) or getattr(_text_config(config), "dtype", None)
        wanted = str(configured or _stored_dtype(path, config)).removeprefix("torch.")
    if wanted not in DTYPES:
        raise UnsupportedModelError(
            path, architecture(config), f"dtype {wanted!r} is not supported, use one of {', '.join(DTYPES)}"
        )
    return DTYPES[wanted]


def _stored_dtype(path: Path, config: Any) -> torch.dtype:
    try:
        return stored_float_dtype(stored_tensors(path)) or torch.float32
    except CheckpointError as error:
        raise UnsupportedModelError(path, architecture(config), str(error)) from error


def architecture(config: Any) -> str:
    """The name of the model's class."""
    model_class = _model_class(config)
    return model_class.__name__ if model_class is not None else str(config.model_type)


def build_skeleton(
    path: Path, config: Any, dtype: torch.dtype, implementation: str = attention.IMPLEMENTATION
) -> nn.Module:
    """The model on the meta device, in evaluation mode, with its attention set. Raises ``UnsupportedModelError``.

    ``config`` becomes the skeleton's own and is changed.
    """
    model_class = _model_class(config)
    name = architecture(config)
    if reason := _wrong_kind(config, model_class):
        raise UnsupportedModelError(path, name, reason)
    attention.register()
    try:
        with building(), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                config, dtype=dtype, attn_implementation=implementation, trust_remote_code=False
            )
    except _WRONG_CONFIGURATION as error:
        raise UnsupportedModelError(path, name, f"its modules cannot be built: {_first_line(error)}") from error
    if model.config._attn_implementation != implementation:
        raise UnsupportedModelError(path, name, "its attention cannot be replaced")
    _keep_precision(model, dtype)
    model.requires_grad_(False)
    for module in model.modules():
        if hasattr(module, "warn_if_padding_and_no_attention_mask"):  # looks through the input at every step
            module.warn_if_padding_and_no_attention_mask = _nothing
    built: nn.Module = model.eval()
    return built


def cache_name(model: nn.Module) -> str:
    """What the model calls the argument that is its cache."""
    return "cache_params" if "cache_params" in signature(model.forward).parameters else "past_key_values"


def _keep_precision(model: Any, dtype: torch.dtype) -> None:
    """Give the few tensors that the class wants in float32 whatever the model's dtype that type."""
    plan = {re.compile(glob.replace("*", ".*")): kept for glob, kept in model._get_dtype_plan(dtype).items()}
    for name, tensor in model.state_dict(keep_vars=True).items():
        kept = next((kept for pattern, kept in plan.items() if pattern.search(name)), None)
        if kept is not None:
            tensor.data = tensor.data.to(kept)


def _model_class(config: Any) -> Any:
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return None
    found = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return found[0] if isinstance(found, tuple | list) else found


def _wrong_kind(config: Any, model_class: Any) -> str | None:
    """Why the model is not one that can run on paged attention, as far as its class says."""
    if getattr(config, "is_encoder_decoder", False):
        return "it is an encoder-decoder model, only decoder-only language models can be served"
    if model_class is None or _text_config(config) is None:
        return "it is not a decoder-only causal language model"
    layers = getattr(_text_config(config), "num_hidden_layers", None)
    if not isinstance(layers, int) or not 1 <= layers <= _MAX_LAYERS:
        return f"it says that it has {layers!r} layers"
    if not model_class._supports_attention_backend and not model_class._is_stateful:  # the dry run looks at those
        return "its attention does not go through Transformers' attention interface"
    if getattr(config, "quantization_config", None) is not None:
        return "it is quantized, only unquantized checkpoints can be served"
    return None


def _nothing(*_: Any) -> None:
    """Nothing is ever padded."""


def _text_config(config: Any) -> Any:
    try:
        return config.get_text_config()
    except ValueError:
        return None


def _first_line(error: Exception) -> str:
    """With the next, where the first only announces it."""
    lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
