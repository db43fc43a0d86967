"""The toy world, with a baseline as the scheduler under test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aegaeon.core.cost import ProfiledCosts
from aegaeon.core.instance import Role
from aegaeon.core.model import ModelSpec
from aegaeon.scheduler.contract import CheckedScheduler
from aegaeon.scheduler.limits import PoolLimits
from aegaeon.scheduler.policies.request_level.sllm import SllmStrategy
from aegaeon.scheduler.policies.request_level.strategy import Strategy
from aegaeon.scheduler.policies.request_level.turn_scheduler import TurnScheduler
from aegaeon.scheduler.scheduler import Scheduler
from sim.systems.sllm_plus import SllmPlusStrategy
from sim.systems.static import StaticStrategy
from tests.worlds.toy_play import Play
from tests.worlds.toy_world import SMALL, WIDE, ToyWorld, make_costs, make_instance, make_limits, make_models

BASELINES = ("sllm", "sllm+", "static")


class PolicyWorld(ToyWorld):
    """A toy world driven by a baseline; ``homes`` places the models of ``static``."""

    def __init__(
        self,
        models: Sequence[ModelSpec],
        limits: PoolLimits,
        baseline: str,
        homes: Mapping[str, str] | None = None,
        costs: ProfiledCosts | None = None,
    ) -> None:
        self._baseline = baseline
        self._homes = dict(homes or {})
        super().__init__(models, limits, costs)

    def fresh_scheduler(self) -> Scheduler:
        models = list(self.models.values())
        return CheckedScheduler(TurnScheduler(models, self.limits, self._strategy()), models, self.limits)

    def _strategy(self) -> Strategy:
        if self._baseline == "static":
            return StaticStrategy(self._homes)
        name, _, artifact = self._baseline.partition(" ")
        strategy = SllmStrategy if name == "sllm" else SllmPlusStrategy
        return strategy(self.costs, idle_first=not artifact)


def play_of(baseline: str, count: int, slabs: int, kv_blocks: int) -> Play:
    """Mixed instances; ``static`` gives instance ik the model m(k mod 5) and needs five of them."""
    homes = {f"i{index}": f"m{index % 5}" for index in range(1, 2000)}
    world = PolicyWorld(make_models(5, shapes=(SMALL, WIDE)), make_limits(slabs=slabs), baseline, homes)
    return Play(world, [Role.MIXED] * count, kv_blocks, max_resident_models=1)


def pool(baseline: str, gpus: int, models: int = 6, switch_s: float = 0.5, **limits: Any) -> PolicyWorld:
    """GPUs g0, g1, ...; ``static`` gives model mi the GPU gi; "sllm artifact" places as the artifact does."""
    specs = make_models(models)
    homes = {f"g{index}": f"m{index}" for index in range(gpus)}
    world = PolicyWorld(specs, make_limits(**limits), baseline, homes, make_costs(specs, switch_s=switch_s))
    for index in range(gpus):
        world.join(make_instance(f"g{index}", max_resident_models=1))
    world.deliver_all()
    return world
