"""The layout of the paper's policy: some devices prefill, the others decode; each can run every model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from aegaeon.core.cost import CostModel
from aegaeon.core.instance import InstanceSpec, Role
from aegaeon.core.model import ModelSpec
from aegaeon.scheduler.layout import Layout, ModelLoad, NoPlacementError, PlacedInstance, PoolDevice, PoolSpec

PREFILL_SHARE = 6 / 16
LEAST_KV_SHARE = 0.1


def disaggregated_layout(
    pool: PoolSpec, models: Sequence[ModelSpec], load: Mapping[str, ModelLoad], costs: CostModel
) -> Layout:
    """Per node 6 of 16 devices prefill and 10 decode, in proportion elsewhere; a lone device does both.

    Memory: the running model and a prefetched one, each as large as the largest, and KV in what is left. Where that
    is too little there is room for one model, and nothing is prefetched.
    """
    roles = {node: _roles(sum(device.node == node for device in pool.devices)) for node in _nodes(pool)}
    placed = []
    for index, device in enumerate(pool.devices):
        role = roles[device.node].pop(0)
        kv_bytes, weight_bytes, resident = _two_model_memory(device, models)
        spec = InstanceSpec(f"{role.value}-{index:02d}", role, kv_bytes, weight_bytes, max_resident_models=resident)
        placed.append(PlacedInstance(spec, index))
    return Layout(pool.devices, tuple(placed))


def _roles(devices: int) -> list[Role]:
    if devices == 1:
        return [Role.MIXED]
    prefills = min(devices - 1, max(1, round(devices * PREFILL_SHARE)))
    return [Role.PREFILL] * prefills + [Role.DECODE] * (devices - prefills)


def _nodes(pool: PoolSpec) -> set[int]:
    return {device.node for device in pool.devices}


def _two_model_memory(device: PoolDevice, models: Sequence[ModelSpec]) -> tuple[int, int, int]:
    """KV bytes, weight bytes, models."""
    largest_bytes = _largest(models)
    for resident in (2, 1):
        kv_bytes = device.memory_bytes - resident * largest_bytes
        if kv_bytes >= LEAST_KV_SHARE * device.memory_bytes:
            return kv_bytes, resident * largest_bytes, resident
    raise _too_small(device, largest_bytes)


def _largest(models: Sequence[ModelSpec]) -> int:
    return max(model.weight_bytes for model in models)


def _too_small(device: PoolDevice, largest_bytes: int) -> NoPlacementError:
    return NoPlacementError(
        f"{device.name} has {device.memory_bytes / 1e9:.1f} GB for weights and KV, which cannot hold the largest "
        f"model ({largest_bytes / 1e9:.1f} GB) and a tenth of its memory in KV"
    )
