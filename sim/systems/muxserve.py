"""MuxServe: models are placed on GPUs once and for all, and those of one GPU run at the same time on shares of it.

The placement minimises the load of the busiest GPU within memory: greedy (most loaded model first), then moves and
swaps as long as they help, then replicas of the busiest GPU's models where there is room. Interference: ``Layout``'s,
with an overlap of one half (assumed): two models of equal share that compute at the same time each run at two thirds of
their speed, so that a shared GPU does a third more than one that takes turns. (The MuxServe paper, ICML'24, reports up
to 1.8 times the throughput of taking turns.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from aegaeon.core.cost import CostModel
from aegaeon.core.instance import InstanceSpec, Role
from aegaeon.core.model import ModelSpec
from aegaeon.scheduler.layout import (
    Layout,
    ModelLoad,
    NoPlacementError,
    PlacedInstance,
    PoolDevice,
    PoolSpec,
    least_kv_bytes,
    require_room,
)
from sim.systems.demand import NO_LOAD, busy_share, concurrency

OVERLAP = 0.5
KV_HEADROOM = 2.0  # KV kept for twice the mean number of requests under way
LEAST_COMPUTE_SHARE = 0.1
_LEAST_GAIN = 1e-9


@dataclass(frozen=True, slots=True)
class Tenant:
    """A model as the optimiser sees it. ``shares[k - 1]``: load of each GPU with one of its k replicas."""

    model: ModelSpec
    weight_bytes: int
    kv_bytes: int
    shares: tuple[float, ...]

    @property
    def need_bytes(self) -> int:
        """Memory of a replica."""
        return self.weight_bytes + self.kv_bytes


@dataclass(slots=True)
class Placement:
    """Tenants by device. ``homes``: the devices of each tenant, by name."""

    devices: Sequence[PoolDevice]
    most_models: int | None
    tenants: list[list[Tenant]]
    homes: dict[str, list[int]] = field(default_factory=dict)

    def share(self, tenant: Tenant) -> float:
        """What a replica of the tenant adds to the load of its device."""
        replicas = len(self.homes.get(tenant.model.name, ())) or 1
        return tenant.shares[replicas - 1]

    def load(self, device: int) -> float:
        """Sum of its tenants' shares."""
        return sum(map(self.share, self.tenants[device]))

    def fits(self, device: int, tenant: Tenant, instead: Tenant | None = None) -> bool:
        """Whether there is room for the tenant (in the place of another)."""
        others = [other for other in self.tenants[device] if other is not instead]
        if any(other is tenant for other in others):
            return False
        if self.most_models is not None and len(others) >= self.most_models:
            return False
        return sum(other.need_bytes for other in others) + tenant.need_bytes <= self.devices[device].memory_bytes

    def add(self, device: int, tenant: Tenant) -> None:
        self.tenants[device].append(tenant)
        self.homes.setdefault(tenant.model.name, []).append(device)

    def remove(self, device: int, tenant: Tenant) -> None:
        self.tenants[device].remove(tenant)
        self.homes[tenant.model.name].remove(device)


def muxserve_layout(
    pool: PoolSpec, models: Sequence[ModelSpec], load: Mapping[str, ModelLoad], costs: CostModel
) -> Layout:
    """One instance per model and replica. Raises ``NoPlacementError`` where the models do not fit."""
    placement = place(
        [_tenant(model, load.get(model.name, NO_LOAD), costs, len(pool.devices)) for model in models], pool
    )
    placed = [
        item for device, tenants in enumerate(placement.tenants) for item in _instances(device, placement, tenants)
    ]
    return Layout(pool.devices, tuple(placed), overlap=OVERLAP)


def place(tenants: Sequence[Tenant], pool: PoolSpec) -> Placement:
    """The best placement found; deterministic. Raises ``NoPlacementError``."""
    for tenant in tenants:
        require_room(max(pool.devices, key=lambda device: device.memory_bytes), tenant.weight_bytes, tenant.kv_bytes)
    by_load = sorted(tenants, key=lambda tenant: (-tenant.shares[0], tenant.model.name))
    by_size = sorted(tenants, key=lambda tenant: (-tenant.need_bytes, tenant.model.name))
    placement = _greedy(by_load, pool) or _greedy(by_size, pool)
    if placement is None:
        raise NoPlacementError(_does_not_fit(tenants, pool))
    while _improve(placement):
        pass
    while _replicate(placement):
        pass
    return placement


def _tenant(model: ModelSpec, load: ModelLoad, costs: CostModel, devices: int) -> Tenant:
    context_tokens = round(load.mean_prompt_tokens + load.mean_new_tokens)
    needed = KV_HEADROOM * concurrency(model, load, costs) * model.kv_shape.bytes_for(context_tokens)
    shares = tuple(busy_share(model, load, costs, replicas) for replicas in range(1, devices + 1))
    return Tenant(model, model.weight_bytes, max(least_kv_bytes(model), int(needed)), shares)


def _greedy(tenants: Sequence[Tenant], pool: PoolSpec) -> Placement | None:
    """Each to the device with the least load that has room."""
    placement = Placement(pool.devices, pool.most_models_per_device, [[] for _ in pool.devices])
    for tenant in tenants:
        roomy = [device for device in range(len(pool.devices)) if placement.fits(device, tenant)]
        if not roomy:
            return None
        placement.add(min(roomy, key=lambda device: (placement.load(device), device)), tenant)
    return placement


def _improve(placement: Placement) -> bool:
    """Move a tenant off the busiest device, or swap it with a lighter one, if both end up less busy than that."""
    worst = max(range(len(placement.tenants)), key=lambda device: (placement.load(device), -device))
    worst_load = placement.load(worst)
    for tenant in list(placement.tenants[worst]):
        for device, others in enumerate(placement.tenants):
            if device == worst:
                continue
            for other in (None, *others):
                if _gains(placement, (worst, tenant), (device, other), worst_load):
                    _exchange(placement, (worst, tenant), (device, other))
                    return True
    return False


def _gains(
    placement: Placement, mine: tuple[int, Tenant], theirs: tuple[int, Tenant | None], worst_load: float
) -> bool:
    """Whether both devices end below ``worst_load`` with the two tenants exchanged."""
    (worst, tenant), (device, other) = mine, theirs
    back = placement.share(other) if other is not None else 0.0
    moved = placement.share(tenant) - back
    if moved <= _LEAST_GAIN or placement.load(device) + moved >= worst_load - _LEAST_GAIN:
        return False
    return placement.fits(device, tenant, other) and (other is None or placement.fits(worst, other, tenant))


def _exchange(placement: Placement, mine: tuple[int, Tenant], theirs: tuple[int, Tenant | None]) -> None:
    (worst, tenant), (device, other) = mine, theirs
    placement.remove(worst, tenant)
    if other is not None:
        placement.remove(device, other)
        placement.add(worst, other)
    placement.add(device, tenant)


def _replicate(placement: Placement) -> bool:
    """Give the busiest device that can be helped another replica of its most loaded model."""
    order = sorted(range(len(placement.tenants)), key=lambda device: (-placement.load(device), device))
    for busy in order:
        for tenant in sorted(placement.tenants[busy], key=lambda tenant: (-placement.share(tenant), tenant.model.name)):
            if _add_replica(placement, tenant, placement.load(busy)):
                return True
    return False


def _add_replica(placement: Placement, tenant: Tenant, busy_load: float) -> bool:
    replicas = len(placement.homes[tenant.model.name])
    roomy = [device for device in range(len(placement.tenants)) if placement.fits(device, tenant)]
    if not roomy or replicas == len(tenant.shares):
        return False
    target = min(roomy, key=lambda device: (placement.load(device), device))
    if placement.load(target) + tenant.shares[replicas] >= busy_load - _LEAST_GAIN:
        return False
    placement.add(target, tenant)
    return True


def _instances(device: int, placement: Placement, tenants: Sequence[Tenant]) -> list[PlacedInstance]:
    """The device's memory beside the weights, in proportion to need; its compute in proportion to load."""
    spare_bytes = placement.devices[device].memory_bytes - sum(tenant.weight_bytes for tenant in tenants)
    needed_bytes = sum(tenant.kv_bytes for tenant in tenants)
    loads = [max(LEAST_COMPUTE_SHARE, placement.share(tenant)) for tenant in tenants]
    return [
        PlacedInstance(
            InstanceSpec(
                f"gpu-{device:02d}-{tenant.model.name}",
                Role.MIXED,
                spare_bytes * tenant.kv_bytes // needed_bytes,
                tenant.weight_bytes,
                max_resident_models=1,
            ),
            device,
            compute_share=load / sum(loads),
            preloaded=(tenant.model.name,),
        )
        for tenant, load in zip(tenants, loads, strict=True)
    ]


def _does_not_fit(tenants: Sequence[Tenant], pool: PoolSpec) -> str:
    most = pool.most_models_per_device
    if most is not None and len(tenants) > most * len(pool.devices):
        return f"{len(tenants)} models, and {len(pool.devices)} devices take {most} each"
    total_bytes = sum(tenant.need_bytes for tenant in tenants)
    room_bytes = sum(device.memory_bytes for device in pool.devices)
    return (
        f"{len(tenants)} models need {total_bytes / 1e9:.0f} GB for weights and KV, and do not fit "
        f"{len(pool.devices)} devices with {room_bytes / 1e9:.0f} GB in all"
    )
