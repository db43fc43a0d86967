"""The layout of ``slack``: every device does both phases, its memory is shared by the weights of many models and KV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from aegaeon.core.cost import CostModel
from aegaeon.core.instance import InstanceSpec, Role
from aegaeon.core.model import ModelSpec
from aegaeon.scheduler.layout import Layout, ModelLoad, NoPlacementError, PlacedInstance, PoolDevice, PoolSpec

LEAST_KV_SHARE = 0.1


def shared_layout(
    pool: PoolSpec, models: Sequence[ModelSpec], load: Mapping[str, ModelLoad], costs: CostModel
) -> Layout:
    """One mixed instance a device. KV may take what the largest model leaves, weights all but a tenth."""
    placed = [PlacedInstance(_instance(index, device, models), index) for index, device in enumerate(pool.devices)]
    return Layout(pool.devices, tuple(placed))


def _instance(index: int, device: PoolDevice, models: Sequence[ModelSpec]) -> InstanceSpec:
    largest_bytes = max(model.weight_bytes for model in models)
    weight_bytes = int(device.memory_bytes * (1 - LEAST_KV_SHARE))
    if largest_bytes > weight_bytes:
        raise NoPlacementError(
            f"{device.name} has {device.memory_bytes / 1e9:.1f} GB for weights and KV, which cannot hold the largest "
            f"model ({largest_bytes / 1e9:.1f} GB) and a tenth of its memory in KV"
        )
    return InstanceSpec(
        f"mixed-{index:02d}",
        Role.MIXED,
        kv_bytes=device.memory_bytes - largest_bytes,
        weight_bytes=weight_bytes,
        max_resident_models=len(models),
        memory_bytes=device.memory_bytes,
    )
