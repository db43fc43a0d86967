"""The policy ``sllm`` as a record, and how any strategy of its kind becomes one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from aegaeon.core.cost import CostModel
from aegaeon.core.instance import Role
from aegaeon.core.model import ModelSpec
from aegaeon.scheduler.limits import PoolLimits
from aegaeon.scheduler.policies.request_level.layout import exclusive_layout
from aegaeon.scheduler.policies.request_level.sllm import SllmStrategy
from aegaeon.scheduler.policies.request_level.strategy import Strategy
from aegaeon.scheduler.policies.request_level.turn_scheduler import TurnScheduler
from aegaeon.scheduler.policy import LineStyle, MakeScheduler, Policy, as_they_join


def by_strategy(strategy: Callable[[CostModel], Strategy]) -> MakeScheduler:
    """Schedulers that differ in their strategy only."""
    return as_they_join(partial(_scheduler, strategy))


def _scheduler(
    strategy: Callable[[CostModel], Strategy], models: Sequence[ModelSpec], costs: CostModel, limits: PoolLimits
) -> TurnScheduler:
    return TurnScheduler(models, limits, strategy(costs))


POLICY = Policy(
    "sllm",
    "ServerlessLLM",
    exclusive_layout,
    by_strategy(SllmStrategy),
    LineStyle("#029e73", "^", (4, 1.5)),
    roles=frozenset({Role.MIXED}),
    aliases=("SeLLMPolicy",),
)
