"""The policies that a pool can run, by name, in the order in which they are told and drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from types import MappingProxyType

from aegaeon.core.cost import CostModel
from aegaeon.core.model import ModelSpec
from aegaeon.scheduler.limits import PoolLimits
from aegaeon.scheduler.policies.paper import policy as paper
from aegaeon.scheduler.policies.request_level import policy as request_level
from aegaeon.scheduler.policies.slack import policy as slack
from aegaeon.scheduler.policy import Policy
from aegaeon.scheduler.router import Router
from aegaeon.scheduler.scheduler import Scheduler

POLICIES: Mapping[str, Policy] = MappingProxyType(
    {policy.name: policy for policy in (slack.POLICY, paper.POLICY, request_level.POLICY)}
)


class UnknownPolicyError(ValueError):
    """No policy of that name; the message lists those there are, the likest first."""


def find_policy(name: str) -> Policy:
    """The policy of that name. Raises ``UnknownPolicyError``."""
    if name not in POLICIES:
        names = ", ".join(nearest_first(name, POLICIES))
        raise UnknownPolicyError(f"no scheduling policy is called {name!r}; there are: {names}")
    return POLICIES[name]


def make_scheduler(policy: str, models: Sequence[ModelSpec], costs: CostModel, limits: PoolLimits) -> Scheduler:
    """A fresh scheduler of the named policy, which learns of instances as they join. Raises ``UnknownPolicyError``."""
    return find_policy(policy).scheduler(models, costs, limits, ())


def make_router(policy: str, models: Sequence[ModelSpec], nodes: int, host_bytes: int) -> Router | None:
    """A fresh router of the named policy; None where it has none. ``host_bytes``: for weights, of a node.

    Raises ``UnknownPolicyError``.
    """
    make = find_policy(policy).router
    return make(models, nodes, host_bytes) if make is not None else None


def nearest_first(name: str, names: Iterable[str]) -> list[str]:
    """The names there are, the likest first."""
    return sorted(names, key=lambda known: (-SequenceMatcher(None, name, known).ratio(), known))
