"""The baseline systems, by name.

Does not know: the production policies (``sim.systems`` lists all).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType

from aegaeon.core.cost import CostModel
from aegaeon.core.model import ModelSpec
from aegaeon.scheduler.limits import PoolLimits
from aegaeon.scheduler.request_level.sllm import SllmStrategy
from aegaeon.scheduler.request_level.strategy import Strategy
from aegaeon.scheduler.request_level.turn_scheduler import TurnScheduler
from aegaeon.scheduler.scheduler import Scheduler
from sim.policies.dedicated import dedicated_layout
from sim.policies.exclusive import exclusive_layout
from sim.policies.muxserve import muxserve_layout
from sim.policies.sllm_plus import SllmPlusStrategy
from sim.policies.static import StaticStrategy
from sim.system import PlacedInstance, System


def _exclusive(
    strategy: Callable[[CostModel], Strategy],
    models: Sequence[ModelSpec],
    costs: CostModel,
    limits: PoolLimits,
    instances: Sequence[PlacedInstance],
) -> Scheduler:
    return TurnScheduler(models, limits, strategy(costs))


def _static(
    models: Sequence[ModelSpec], costs: CostModel, limits: PoolLimits, instances: Sequence[PlacedInstance]
) -> Scheduler:
    homes = {placed.spec.instance_id: model for placed in instances for model in placed.preloaded}
    return TurnScheduler(models, limits, StaticStrategy(homes))


BASELINES: Mapping[str, System] = MappingProxyType(
    {
        system.name: system
        for system in (
            System("sllm", exclusive_layout, partial(_exclusive, SllmStrategy)),
            System("sllm+", exclusive_layout, partial(_exclusive, SllmPlusStrategy)),
            System("muxserve", muxserve_layout, _static),
            System("dedicated", dedicated_layout, _static),
        )
    }
)

ARTIFACT_STEP_QUANTUM_S = 1e-3
"""There a baseline's step takes whole milliseconds, what is beyond is cut off."""

ARTIFACT_BASELINES: Mapping[str, System] = MappingProxyType(
    {
        name: System(
            name,
            exclusive_layout,
            partial(_exclusive, partial(strategy, idle_first=False)),
            step_quantum_s=ARTIFACT_STEP_QUANTUM_S,
        )
        for name, strategy in (("sllm", SllmStrategy), ("sllm+", SllmPlusStrategy))
    }
)
"""Where the SOSP'25 artifact's simulator decides, or counts time, otherwise than one would."""
