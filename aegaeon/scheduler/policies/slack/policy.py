"""The policy ``slack`` as a record."""

from __future__ import annotations

from collections.abc import Sequence

from aegaeon.core.cost import CostModel
from aegaeon.core.model import ModelSpec
from aegaeon.scheduler.layout import PlacedInstance
from aegaeon.scheduler.limits import PoolLimits
from aegaeon.scheduler.policies.slack.homes import Homes
from aegaeon.scheduler.policies.slack.layout import shared_layout
from aegaeon.scheduler.policies.slack.scheduler import SlackScheduler
from aegaeon.scheduler.policy import LineStyle, Policy

CHUNK_TOKENS = 1024
"""What prompts are cut into: a due token waits for a chunk at most (about 30 ms on an H100)."""


def _scheduler(
    models: Sequence[ModelSpec], costs: CostModel, limits: PoolLimits, _instances: Sequence[PlacedInstance]
) -> SlackScheduler:
    return SlackScheduler(models, costs, limits)


POLICY = Policy(
    "slack",
    "this project (slack)",
    shared_layout,
    _scheduler,
    LineStyle("#d55e00", "o", bold=True),
    router=Homes,
    prefill_chunk_tokens=CHUNK_TOKENS,
)
