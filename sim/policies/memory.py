"""What a model needs of a device's memory beside its weights.

Does not know: layouts, schedulers.
"""

from __future__ import annotations

from aegaeon.core.model import ModelSpec
from sim.system import Device, NoPlacementError

LEAST_CONTEXT_TOKENS = 8192
"""A placement must have room for a request of this length, or of the model's limit where that is less."""


def least_kv_bytes(model: ModelSpec) -> int:
    """KV that a model must have room for wherever it runs."""
    return model.kv_shape.bytes_for(min(model.max_context_tokens, LEAST_CONTEXT_TOKENS))


def require_room(device: Device, weight_bytes: int, kv_bytes: int) -> None:
    """Raises ``NoPlacementError`` where a model and the KV it must have do not fit the device alone."""
    if weight_bytes + kv_bytes > device.memory_bytes:
        raise NoPlacementError(
            f"{device.name} has {device.memory_bytes / 1e9:.1f} GB for weights and KV; a model of the workload needs "
            f"{weight_bytes / 1e9:.1f} GB and {kv_bytes / 1e9:.1f} GB of KV"
        )
