"""How a pool is laid out: which instances stand on which device, with how much of its memory. For both worlds.

An operator may have decided it (``PoolSpec.roles`` and ``PoolDevice.rooms``: what ``aegaeon serve`` was told, or what
fits the machine); else the policy does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from aegaeon.core.cost import CostModel
from aegaeon.core.instance import BATCH_REQUESTS, InstanceSpec, Role
from aegaeon.core.model import ModelSpec


class NoPlacementError(Exception):
    """The system cannot hold this workload on this pool; the message says why."""


@dataclass(frozen=True, slots=True)
class Rooms:
    """A part of a device's memory for weights, of so many models at most, and one for KV; neither takes the other's."""

    weight_bytes: int
    kv_bytes: int
    resident_models: int


@dataclass(frozen=True, slots=True)
class PoolDevice:
    """One device (or tensor-parallel group that acts as one): ``memory_bytes`` are usable for weights and KV.

    ``rooms``: how they are divided; None leaves it to the policy, which may let weights and KV share them.
    """

    name: str
    memory_bytes: int
    node: int = 0
    rooms: Rooms | None = None


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """The hardware that a policy is laid out on.

    ``most_models_per_device`` bounds static placements where the experiment says so (the paper: two for MuxServe),
    None leaves it to memory. ``roles``: of the devices' instances, in order; empty leaves it to the policy. Roles and
    rooms are decided together. ``max_batch_requests``: of an instance.
    """

    devices: tuple[PoolDevice, ...]
    most_models_per_device: int | None = None
    roles: tuple[Role, ...] = ()
    max_batch_requests: int = BATCH_REQUESTS

    def __post_init__(self) -> None:
        if not self.devices:
            raise ValueError("a pool needs a device")
        if self.roles and len(self.roles) != len(self.devices):
            raise ValueError(f"{len(self.roles)} roles for {len(self.devices)} devices")
        if {device.rooms is not None for device in self.devices} != {bool(self.roles)}:
            raise ValueError("roles without rooms, or rooms without roles: whoever decides the one decides the other")


@dataclass(frozen=True, slots=True)
class ModelLoad:
    """What is known in advance of a model's traffic, for systems that place models statically."""

    rate_per_s: float
    mean_prompt_tokens: float
    mean_new_tokens: float


@dataclass(frozen=True, slots=True)
class PlacedInstance:
    """An instance, the device it stands on, its share of the device's compute, and what is loaded from the start.

    ``preloaded`` weights are on the device at time 0 (static placements); they count as resident, and the scheduler is
    expected to know.
    """

    spec: InstanceSpec
    device: int
    compute_share: float = 1.0
    preloaded: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Layout:
    """Instances on devices. ``devices`` may be more than the pool has: ``dedicated`` buys what it needs.

    Instances of one device run at the same time. With ``w_j`` the compute shares of those that are busy, one with
    share ``w_i`` runs at speed ``w_i / (w_i + (1 - overlap) * sum of the other w_j)``: ``overlap`` 0 is time slicing,
    1 no interference at all.
    """

    devices: tuple[PoolDevice, ...]
    instances: tuple[PlacedInstance, ...]
    overlap: float = 0.0

    def __post_init__(self) -> None:
        names = [placed.spec.instance_id for placed in self.instances]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"a layout needs instances with names of their own, got {names}")
        if not 0.0 <= self.overlap <= 1.0:
            raise ValueError(f"overlap is a share, got {self.overlap}")
        if any(not 0 <= placed.device < len(self.devices) for placed in self.instances):
            raise ValueError("an instance stands on a device that is not there")

    def on_node(self, node: int) -> tuple[PlacedInstance, ...]:
        """The instances whose device belongs to a node."""
        return tuple(placed for placed in self.instances if self.devices[placed.device].node == node)

    @property
    def nodes(self) -> tuple[int, ...]:
        """Nodes with an instance, ascending."""
        return tuple(sorted({self.devices[placed.device].node for placed in self.instances}))


LayoutPlan = Callable[[PoolSpec, Sequence[ModelSpec], Mapping[str, ModelLoad], CostModel], Layout]
"""(pool, models, load by model name, costs) -> layout. Raises ``NoPlacementError``."""


def decided_layout(pool: PoolSpec, models: Sequence[ModelSpec]) -> Layout:
    """The layout of a pool whose operator has decided everything: each device has rooms, and its instance a role.

    Raises ``NoPlacementError`` where a device cannot hold the largest model.
    """
    placed = [
        PlacedInstance(_instance(f"{role.value}-{index:02d}", role, device, models, pool.max_batch_requests), index)
        for index, (role, device) in enumerate(zip(pool.roles, pool.devices, strict=True))
    ]
    return Layout(pool.devices, tuple(placed))


def _instance(name: str, role: Role, device: PoolDevice, models: Sequence[ModelSpec], batch: int) -> InstanceSpec:
    rooms = device.rooms
    assert rooms is not None, f"{device.name} has a role, and no rooms"
    largest_bytes = max(model.weight_bytes for model in models)
    if largest_bytes > rooms.weight_bytes:
        raise NoPlacementError(
            f"the largest model has {largest_bytes} bytes of weights, but {device.name} has room for "
            f"{rooms.weight_bytes}"
        )
    return InstanceSpec(name, role, rooms.kv_bytes, rooms.weight_bytes, rooms.resident_models, batch)


LEAST_CONTEXT_TOKENS = 8192
"""A placement must have room for a request of this length, or of the model's limit where that is less."""


def least_kv_bytes(model: ModelSpec) -> int:
    """KV that a model must have room for wherever it runs."""
    return model.kv_shape.bytes_for(min(model.max_context_tokens, LEAST_CONTEXT_TOKENS))


def require_room(device: PoolDevice, weight_bytes: int, kv_bytes: int) -> None:
    """Raises ``NoPlacementError`` where a model and the KV it must have do not fit the device alone."""
    if weight_bytes + kv_bytes > device.memory_bytes:
        raise NoPlacementError(
            f"{device.name} has {device.memory_bytes / 1e9:.1f} GB for weights and KV; a model of the workload needs "
            f"{weight_bytes / 1e9:.1f} GB and {kv_bytes / 1e9:.1f} GB of KV"
        )
