"""A model's entry in the node's host cache, as an instance sees it."""

from __future__ import annotations

import torch

import quick_model_loader as qml
from aegaeon.runtime.instance.core.weight_store import WeightError
from aegaeon.runtime.wire.messages import HostWeights


def attach(weights: HostWeights) -> qml.Entry:
    """The model's entry in the node's host cache, mapped here. Raises ``WeightError``."""
    try:
        return qml.attach(weights.handle)
    except qml.LoaderError as error:
        raise WeightError(f"cannot map the weights of {weights.model}: {error}") from error


def host_tensors(entry: qml.Entry) -> dict[str, torch.Tensor]:
    """Views of an entry's tensors, by name. Raises ``WeightError`` for one that torch cannot view."""
    try:
        return entry.torch_all()
    except qml.LoaderError as error:
        raise WeightError(f"model {entry.key}: {error}") from error


def device_tensors(entry: qml.Entry, memory: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same tensors in ``memory``, a device's bytes that are, or will be, a copy of the entry's."""
    return {name: _moved(memory, entry.offset(name), host) for name, host in host_tensors(entry).items()}


def _moved(memory: torch.Tensor, offset_bytes: int, host: torch.Tensor) -> torch.Tensor:
    return memory[offset_bytes : offset_bytes + host.nbytes].view(host.dtype).view(host.shape)
