"""The layout of systems whose GPUs run one model at a time, any of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from aegaeon.core.cost import CostModel
from aegaeon.core.instance import InstanceSpec, Role
from aegaeon.core.model import ModelSpec
from aegaeon.scheduler.layout import Layout, ModelLoad, PlacedInstance, PoolSpec, least_kv_bytes, require_room


def exclusive_layout(
    pool: PoolSpec, models: Sequence[ModelSpec], load: Mapping[str, ModelLoad], costs: CostModel
) -> Layout:
    """An instance per device, with room for the largest model, and KV in what is left.

    Raises ``NoPlacementError`` where a device cannot hold the largest model and the KV that a model must have.
    """
    largest_bytes = max(model.weight_bytes for model in models)
    kv_bytes = max(map(least_kv_bytes, models))
    placed = []
    for index, device in enumerate(pool.devices):
        require_room(device, largest_bytes, kv_bytes)
        room_bytes = device.memory_bytes - largest_bytes
        spec = InstanceSpec(f"gpu-{index:02d}", Role.MIXED, room_bytes, largest_bytes, max_resident_models=1)
        placed.append(PlacedInstance(spec, index))
    return Layout(pool.devices, tuple(placed))
