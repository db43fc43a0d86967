"""Buffers that no checkpoint stores, such as rotary frequencies: their model computes them when it is initialised."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


def fill_computed_buffers(model: nn.Module) -> list[str]:
    """Give a skeleton's non-persistent buffers memory and values; the names of those that nothing gave a value."""
    unset = []
    for name, module, initialiser in _modules(model):
        keys = [key for key in module._non_persistent_buffers_set if module._buffers.get(key) is not None]
        for key in keys:
            module._buffers[key] = _unset(module._buffers[key])
        if keys:
            initialiser._init_weights(module)
        unset += [(name, module, key) for key in keys]
    for name, module, key in unset:
        if _is_unset(module._buffers[key]):
            _initialise_above(model, name)
    return [f"{name}.{key}" for name, module, key in unset if _is_unset(module._buffers[key])]


def _initialise_above(model: nn.Module, name: str) -> None:
    """Have the models that a module is in initialise themselves: some compute buffers of their layers."""
    while name:
        name = name.rpartition(".")[0]
        above: Any = model.get_submodule(name)
        if hasattr(above, "_init_weights"):
            above._init_weights(above)


def move_computed_buffers(model: nn.Module, device: torch.device) -> None:
    """Bring every buffer that has memory to a device; the others, of the checkpoint, are bound like weights."""
    for module in model.modules():
        for key, buffer in module._buffers.items():
            if buffer is not None and not buffer.is_meta:
                module._buffers[key] = buffer.to(device)


def _modules(model: nn.Module) -> Iterator[tuple[str, nn.Module, Any]]:
    """Each module with the model, or model within the model, that initialises it: the innermost."""
    initialisers: dict[str, Any] = {}
    for name, module in model.named_modules():
        above = initialisers.get(name.rpartition(".")[0])
        initialisers[name] = module if hasattr(module, "_init_weights") else above
        yield name, module, initialisers[name]


def _unset(buffer: Tensor | None) -> Tensor:
    assert buffer is not None
    return torch.full(buffer.shape, _mark(buffer.dtype), dtype=buffer.dtype)


def _is_unset(buffer: Tensor | None) -> bool:
    assert buffer is not None
    mark = _mark(buffer.dtype)
    return bool((buffer.isnan() if mark != mark else buffer == mark).any()) and buffer.dtype is not torch.bool


def _mark(dtype: torch.dtype) -> float | int:
    """A value that nothing would compute."""
    if dtype.is_floating_point:
        return float("nan")
    return 0 if dtype is torch.bool else torch.iinfo(dtype).min
