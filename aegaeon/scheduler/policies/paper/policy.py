"""The policy ``aegaeon`` as a record."""

from __future__ import annotations

from collections.abc import Sequence

from aegaeon.core.cost import CostModel
from aegaeon.core.model import ModelSpec
from aegaeon.scheduler.layout import PlacedInstance
from aegaeon.scheduler.limits import PoolLimits
from aegaeon.scheduler.policies.paper.aegaeon import AegaeonScheduler
from aegaeon.scheduler.policies.paper.layout import disaggregated_layout
from aegaeon.scheduler.policy import LineStyle, Policy


def _scheduler(
    models: Sequence[ModelSpec], costs: CostModel, limits: PoolLimits, _instances: Sequence[PlacedInstance]
) -> AegaeonScheduler:
    return AegaeonScheduler(models, costs, limits)


POLICY = Policy("aegaeon", "Aegaeon (SOSP'25)", disaggregated_layout, _scheduler, LineStyle("#0173b2", "s"))
