"""Rotary embeddings that look at the longest sequence of a batch, made to look at nothing.

``dynamic`` and ``longrope`` choose their frequencies by the largest position in a forward pass. In a batch that would
let one request change another's output, and KV cached under one choice would be read under another. So the choice is
made once for each model: the one for its longest context (as other serving systems do).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

_PINNED = "pinned"


def pin(model: nn.Module, max_context_tokens: int) -> None:
    """Fix the frequencies for contexts up to ``max_context_tokens``; buffers must be real."""
    positions = torch.tensor([[max_context_tokens - 1]])
    for module in _length_dependent(model):
        types = module.rope_type
        keys = [{"layer_type": key} for key in types] if isinstance(types, dict) else [{}]
        for key in keys:
            module(torch.zeros(1, dtype=torch.float32), positions, **key)
    pin_types(model)


def pin_types(model: nn.Module) -> None:
    """Keep the frequencies as they are from now on."""
    for module in _length_dependent(model):
        types = module.rope_type
        module.rope_type = dict.fromkeys(types, _PINNED) if isinstance(types, dict) else _PINNED


def _length_dependent(model: nn.Module) -> Iterator[Any]:
    for module in model.modules():
        types = getattr(module, "rope_type", None)
        names = types.values() if isinstance(types, dict) else [types]
        if any(isinstance(name, str) and ("dynamic" in name or name == "longrope") for name in names):
            yield module
