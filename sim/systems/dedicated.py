"""Dedicated GPUs: every model has its own, as many as its traffic needs. What serving costs without pooling.

A model gets replicas until each is busy at most ``TARGET_UTILISATION`` of the time with batches as large as its TPOT
target and its memory allow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil

from aegaeon.core.cost import CostModel
from aegaeon.core.instance import InstanceSpec, Role
from aegaeon.core.model import ModelSpec
from aegaeon.scheduler.layout import (
    Layout,
    ModelLoad,
    PlacedInstance,
    PoolDevice,
    PoolSpec,
    least_kv_bytes,
    require_room,
)
from sim.systems.demand import NO_LOAD

TARGET_UTILISATION = 0.7
MAX_BATCH = 256
_TPOT_MARGIN = 0.8  # prompts interrupt the steps


def dedicated_layout(
    pool: PoolSpec, models: Sequence[ModelSpec], load: Mapping[str, ModelLoad], costs: CostModel
) -> Layout:
    """As many devices of the first kind as the models need. Raises ``NoPlacementError`` for one too large."""
    kind = pool.devices[0]
    for model in models:
        require_room(kind, model.weight_bytes, least_kv_bytes(model))
    homes = [model for model in models for _ in range(replicas(model, load.get(model.name, NO_LOAD), kind, costs))]
    nodes = len({device.node for device in pool.devices})
    devices = tuple(
        PoolDevice(f"{kind.name}-dedicated-{index:03d}", kind.memory_bytes, index * nodes // len(homes))
        for index in range(len(homes))
    )
    placed = tuple(_instance(index, model, kind) for index, model in enumerate(homes))
    return Layout(devices, placed)


def replicas(model: ModelSpec, load: ModelLoad, device: PoolDevice, costs: CostModel) -> int:
    """GPUs that the model's traffic needs, at least one."""
    context_tokens = round(load.mean_prompt_tokens + load.mean_new_tokens / 2)
    room_bytes = device.memory_bytes - model.weight_bytes
    most = max(1, min(MAX_BATCH, room_bytes // model.kv_shape.bytes_for(context_tokens)))
    batch = _largest_batch(model, context_tokens, most, costs)
    step_s = costs.decode_step_s(model.name, batch * context_tokens, batch)
    prefill_s = costs.prefill_s(model.name, (max(1, round(load.mean_prompt_tokens)),))
    request_s = prefill_s + load.mean_new_tokens * step_s / batch
    return max(1, ceil(load.rate_per_s * request_s / TARGET_UTILISATION))


def _largest_batch(model: ModelSpec, context_tokens: int, most: int, costs: CostModel) -> int:
    """The most requests (up to ``most``) whose step is within the TPOT target; one where none is."""
    limit_s = _TPOT_MARGIN * model.slo.tpot_s
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        if costs.decode_step_s(model.name, middle * context_tokens, middle) <= limit_s:
            low = middle
        else:
            high = middle - 1
    return low


def _instance(index: int, model: ModelSpec, kind: PoolDevice) -> PlacedInstance:
    kv_bytes = kind.memory_bytes - model.weight_bytes
    spec = InstanceSpec(
        f"own-{index:03d}-{model.name}",
        Role.MIXED,
        kv_bytes,
        model.weight_bytes,
        max_resident_models=1,
        max_batch_requests=MAX_BATCH,
    )
    return PlacedInstance(spec, index, preloaded=(model.name,))
