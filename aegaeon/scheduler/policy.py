"""What a policy is: one record, of which the runtime, the simulator, the settings and figures take what they need.

To add one: a folder under ``aegaeon/scheduler/policies`` with such a record, and its name in the registry there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from aegaeon.core.cost import CostModel
from aegaeon.core.instance import Role
from aegaeon.core.model import ModelSpec
from aegaeon.scheduler.contract import CheckedScheduler
from aegaeon.scheduler.layout import (
    Layout,
    LayoutPlan,
    ModelLoad,
    NoPlacementError,
    PlacedInstance,
    PoolSpec,
    decided_layout,
)
from aegaeon.scheduler.limits import PoolLimits
from aegaeon.scheduler.router import MakeRouter
from aegaeon.scheduler.scheduler import Scheduler

MakeScheduler = Callable[[Sequence[ModelSpec], CostModel, PoolLimits, Sequence[PlacedInstance]], Scheduler]
"""(models, costs, one node's limits, one node's instances) -> that node's scheduler. It is told of each of those
instances by ``InstanceJoined``, as they come up; only static placements go by the list."""


MakeUnplaced = Callable[[Sequence[ModelSpec], CostModel, PoolLimits], Scheduler]


def as_they_join(make: MakeUnplaced) -> MakeScheduler:
    """Makes schedulers that need to know no instance before it has joined; it can be pickled where ``make`` can."""
    return partial(_unplaced, make)


def _unplaced(
    make: MakeUnplaced,
    models: Sequence[ModelSpec],
    costs: CostModel,
    limits: PoolLimits,
    _instances: Sequence[PlacedInstance],
) -> Scheduler:
    return make(models, costs, limits)


@dataclass(frozen=True, slots=True)
class LineStyle:
    """How a policy is drawn in every figure. ``colour``: ``#rrggbb``. ``dash``: lengths of ink and gap in turn, empty
    for a solid line."""

    colour: str
    marker: str
    dash: tuple[float, ...] = ()
    bold: bool = False


@dataclass(frozen=True, slots=True)
class Policy:
    """A serving policy. Each node has a scheduler of its own; requests get to nodes by the policy's router.

    Without one they go to the node with the fewest requests, unless one that has the model in memory is near it.
    ``title``: how figures and tables call it. ``roles``: of instances that it can drive. ``prefill_chunk_tokens``:
    simulated, it processes prompts in chunks of this size, whatever the run's constants say; so does
    ``step_quantum_s`` hold for its steps. ``aliases``: its names in other people's records.
    """

    name: str
    title: str
    layout: LayoutPlan
    scheduler: MakeScheduler
    style: LineStyle
    roles: frozenset[Role] = frozenset(Role)
    router: MakeRouter | None = None
    prefill_chunk_tokens: int | None = None
    step_quantum_s: float | None = None
    aliases: tuple[str, ...] = ()

    def checked(self) -> Policy:
        """The same policy, whose schedulers raise ``ContractError`` where they break their contract."""

        def scheduler(
            models: Sequence[ModelSpec], costs: CostModel, limits: PoolLimits, instances: Sequence[PlacedInstance]
        ) -> Scheduler:
            return CheckedScheduler(self.scheduler(models, costs, limits, instances), models, limits)

        return replace(self, scheduler=scheduler)

    def lay_out(
        self, pool: PoolSpec, models: Sequence[ModelSpec], load: Mapping[str, ModelLoad], costs: CostModel
    ) -> Layout:
        """The layout of this policy on a pool, for the runtime and the simulator alike.

        What the pool's operator has decided holds, the policy decides the rest. Raises ``NoPlacementError``.
        """
        wrong = sorted({role.value for role in pool.roles} - {role.value for role in self.roles})
        if wrong:
            raise NoPlacementError(f"the policy {self.name} does not drive {' or '.join(wrong)} instances")
        if pool.roles:
            return decided_layout(pool, models)
        return self.layout(pool, models, load, costs)
