"""Policies by name.

Does not know: what a policy does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from types import MappingProxyType

from aegaeon.core.cost import CostModel
from aegaeon.core.model import ModelSpec
from aegaeon.scheduler.aegaeon import AegaeonScheduler
from aegaeon.scheduler.limits import PoolLimits
from aegaeon.scheduler.scheduler import Scheduler
from aegaeon.scheduler.slack.scheduler import SlackScheduler

Policy = Callable[[Sequence[ModelSpec], CostModel, PoolLimits], Scheduler]

POLICIES: Mapping[str, Policy] = MappingProxyType({"aegaeon": AegaeonScheduler, "slack": SlackScheduler})


class UnknownPolicyError(ValueError):
    """No policy of that name; the message lists those there are, the likest first."""


def make_scheduler(
    policy: str,
    models: Sequence[ModelSpec],
    costs: CostModel,
    limits: PoolLimits,
    policies: Mapping[str, Policy] = POLICIES,
) -> Scheduler:
    """A fresh scheduler of the named policy. Raises ``UnknownPolicyError``."""
    if policy not in policies:
        names = ", ".join(_nearest_first(policy, policies))
        raise UnknownPolicyError(f"no scheduling policy is called {policy!r}; there are: {names}")
    return policies[policy](models, costs, limits)


def _nearest_first(name: str, names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda known: (-SequenceMatcher(None, name, known).ratio(), known))
