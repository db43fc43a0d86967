"""The systems that only the simulator has, and those of the SOSP'25 artifact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType

from aegaeon.core.cost import CostModel
from aegaeon.core.instance import Role
from aegaeon.core.model import ModelSpec
from aegaeon.scheduler.layout import LayoutPlan, PlacedInstance
from aegaeon.scheduler.limits import PoolLimits
from aegaeon.scheduler.policies.registry import POLICIES
from aegaeon.scheduler.policies.request_level.layout import exclusive_layout
from aegaeon.scheduler.policies.request_level.policy import by_strategy
from aegaeon.scheduler.policies.request_level.sllm import SllmStrategy
from aegaeon.scheduler.policies.request_level.turn_scheduler import TurnScheduler
from aegaeon.scheduler.policy import LineStyle, MakeScheduler, Policy
from aegaeon.scheduler.scheduler import Scheduler
from sim.systems.dedicated import dedicated_layout
from sim.systems.muxserve import muxserve_layout
from sim.systems.sllm_plus import SllmPlusStrategy
from sim.systems.static import StaticStrategy


def _static(
    models: Sequence[ModelSpec], costs: CostModel, limits: PoolLimits, instances: Sequence[PlacedInstance]
) -> Scheduler:
    homes = {placed.spec.instance_id: model for placed in instances for model in placed.preloaded}
    return TurnScheduler(models, limits, StaticStrategy(homes))


def _baseline(
    name: str,
    title: str,
    layout: LayoutPlan,
    scheduler: MakeScheduler,
    style: LineStyle,
    aliases: tuple[str, ...] = (),
) -> Policy:
    return Policy(name, title, layout, scheduler, style, roles=frozenset({Role.MIXED}), aliases=aliases)


BASELINES: Mapping[str, Policy] = MappingProxyType(
    {
        policy.name: policy
        for policy in (
            _baseline(
                "sllm+",
                "ServerlessLLM+",
                exclusive_layout,
                by_strategy(SllmPlusStrategy),
                LineStyle("#de8f05", "D", (1, 1)),
                ("SeLLMPlusPolicy",),
            ),
            _baseline("muxserve", "MuxServe", muxserve_layout, _static, LineStyle("#cc78bc", "v", (5, 1.2, 1, 1.2))),
            _baseline("dedicated", "one GPU per model", dedicated_layout, _static, LineStyle("#ca9161", "P", (7, 2))),
        )
    }
)

ARTIFACT_STEP_QUANTUM_S = 1e-3
"""There a baseline's step takes whole milliseconds, what is beyond is cut off."""

ARTIFACT_BASELINES: Mapping[str, Policy] = MappingProxyType(
    {
        policy.name: replace(
            policy,
            scheduler=by_strategy(partial(strategy, idle_first=False)),
            step_quantum_s=ARTIFACT_STEP_QUANTUM_S,
        )
        for policy, strategy in ((POLICIES["sllm"], SllmStrategy), (BASELINES["sllm+"], SllmPlusStrategy))
    }
)
"""Where the SOSP'25 artifact's simulator decides, or counts time, otherwise than one would."""
