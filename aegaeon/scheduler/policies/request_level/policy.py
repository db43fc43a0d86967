"""The policy ``sllm`` as a record."""

from __future__ import annotations

from collections.abc import Sequence

from aegaeon.core.cost import CostModel
from aegaeon.core.instance import Role
from aegaeon.core.model import ModelSpec
from aegaeon.scheduler.layout import PlacedInstance
from aegaeon.scheduler.limits import PoolLimits
from aegaeon.scheduler.policies.request_level.layout import exclusive_layout
from aegaeon.scheduler.policies.request_level.sllm import SllmStrategy
from aegaeon.scheduler.policies.request_level.turn_scheduler import TurnScheduler
from aegaeon.scheduler.policy import LineStyle, Policy


def _scheduler(
    models: Sequence[ModelSpec], costs: CostModel, limits: PoolLimits, _instances: Sequence[PlacedInstance]
) -> TurnScheduler:
    return TurnScheduler(models, limits, SllmStrategy(costs))


POLICY = Policy(
    "sllm",
    "ServerlessLLM",
    exclusive_layout,
    _scheduler,
    LineStyle("#029e73", "^", (4, 1.5)),
    roles=frozenset({Role.MIXED}),
    aliases=("SeLLMPolicy",),
)
