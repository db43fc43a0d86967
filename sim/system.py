"""What a serving system is to the simulator: which instances stand on which device, and the scheduler that drives them.

Does not know: how commands are carried out, time, the systems there are (``sim.systems`` lists them).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from aegaeon.core.cost import CostModel
from aegaeon.core.instance import InstanceSpec
from aegaeon.core.model import ModelSpec
from aegaeon.scheduler.limits import PoolLimits
from aegaeon.scheduler.router import MakeRouter
from aegaeon.scheduler.scheduler import Scheduler


class NoPlacementError(Exception):
    """The system cannot hold this workload on this pool; the message says why."""


@dataclass(frozen=True, slots=True)
class Device:
    """One device (or tensor-parallel group that acts as one): ``memory_bytes`` are usable for weights and KV."""

    name: str
    memory_bytes: int
    node: int = 0


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """The hardware that a system is laid out on.

    ``most_models_per_device`` bounds static placements where the experiment says so (the paper: two for MuxServe),
    None leaves it to memory.
    """

    devices: tuple[Device, ...]
    most_models_per_device: int | None = None

    def __post_init__(self) -> None:
        if not self.devices:
            raise ValueError("a pool needs a device")


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

    devices: tuple[Device, ...]
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

MakeScheduler = Callable[[Sequence[ModelSpec], CostModel, PoolLimits, Sequence[PlacedInstance]], Scheduler]
"""(models, costs, one node's limits, one node's instances) -> that node's scheduler. The simulator sends it
``InstanceJoined`` for each of those instances, in order, before anything else."""


@dataclass(frozen=True, slots=True)
class System:
    """A serving system by name. Each node has a scheduler of its own; requests get to nodes by the system's router.

    Without one they go to the node with the fewest requests, unless one that has the model in memory is near it.
    ``prefill_chunk_tokens``: the system processes prompts in chunks of this size, whatever the run's constants say; so
    does ``step_quantum_s`` hold for its steps.
    """

    name: str
    layout: LayoutPlan
    scheduler: MakeScheduler
    router: MakeRouter | None = None
    prefill_chunk_tokens: int | None = None
    step_quantum_s: float | None = None
