"""Whether a model directory says that its weights are quantized, in any of the ways in which tools say so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_CONFIG_KEYS = ("quantization_config", "compression_config", "quantization")
"""Transformers' and compressed-tensors' names, and that of MLX."""

_FILES = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")
"""Beside the configuration: written by ModelOpt, AutoGPTQ and AutoAWQ."""

_METHOD_KEYS = ("quant_method", "quant_algo", "format", "load_in_4bit", "load_in_8bit", "bits")


def quantization(path: Path, values: Mapping[str, Any]) -> str | None:
    """How the weights are quantized and where that is said, or None. ``values``: of the directory's ``config.json``."""
    for key, said in _said(values):
        return f"{_method(said)}{key} in config.json"
    return next((name for name in _FILES if (path / name).exists()), None)


def _said(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What the configuration and those within it say; ``null`` says nothing."""
    yield from ((key, values[key]) for key in _CONFIG_KEYS if values.get(key) not in (None, False))
    for inner in values.values():
        if isinstance(inner, dict):
            yield from _said(inner)


def _method(said: Any) -> str:
    values = said if isinstance(said, dict) else {}
    found = next((key for key in _METHOD_KEYS if values.get(key)), None)
    if found is None:
        return ""
    return f"{values[found]}, " if found in _METHOD_KEYS[:3] else f"{found} {values[found]}, "
