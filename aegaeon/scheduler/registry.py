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
from aegaeon.scheduler.request_level.sllm import make_sllm
from aegaeon.scheduler.router import MakeRouter, Router
from aegaeon.scheduler.scheduler import Scheduler
from aegaeon.scheduler.slack.homes import Homes
from aegaeon.scheduler.slack.scheduler import SlackScheduler

Policy = Callable[[Sequence[ModelSpec], CostModel, PoolLimits], Scheduler]

POLICIES: Mapping[str, Policy] = MappingProxyType(
    {"aegaeon": AegaeonScheduler, "slack": SlackScheduler, "sllm": make_sllm}
)

ROUTERS: Mapping[str, MakeRouter] = MappingProxyType({"slack": Homes})
"""Of the policies that have one."""


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


def make_router(policy: str, models: Sequence[ModelSpec], nodes: int, host_bytes: int) -> Router | None:
    """A fresh router of the named policy; None where it has none. ``host_bytes``: for weights, of a node."""
    return ROUTERS[policy](models, nodes, host_bytes) if policy in ROUTERS else None


def _nearest_first(name: str, names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda known: (-SequenceMatcher(None, name, known).ratio(), known))
