"""The policy ``slack`` as a record."""

from __future__ import annotations

from aegaeon.scheduler.policies.slack.homes import Homes
from aegaeon.scheduler.policies.slack.layout import shared_layout
from aegaeon.scheduler.policies.slack.scheduler import SlackScheduler
from aegaeon.scheduler.policy import LineStyle, Policy, as_they_join

CHUNK_TOKENS = 1024
"""What prompts are cut into: a due token waits for a chunk at most (about 30 ms on an H100)."""

POLICY = Policy(
    "slack",
    "this project (slack)",
    shared_layout,
    as_they_join(SlackScheduler),
    LineStyle("#d55e00", "o", bold=True),
    router=Homes,
    prefill_chunk_tokens=CHUNK_TOKENS,
)
