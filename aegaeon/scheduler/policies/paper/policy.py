"""The policy ``aegaeon`` as a record."""

from __future__ import annotations

from aegaeon.scheduler.policies.paper.aegaeon import AegaeonScheduler
from aegaeon.scheduler.policies.paper.layout import disaggregated_layout
from aegaeon.scheduler.policy import LineStyle, Policy, as_they_join

POLICY = Policy(
    "aegaeon", "Aegaeon (SOSP'25)", disaggregated_layout, as_they_join(AegaeonScheduler), LineStyle("#0173b2", "s")
)
