"""The systems that can be simulated, by name: the policies of the pool, and those it is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from aegaeon.scheduler.policies.registry import POLICIES, nearest_first
from aegaeon.scheduler.policy import Policy
from sim.systems.baselines import ARTIFACT_BASELINES, BASELINES
from sim.systems.errors import InputError

SYSTEMS: Mapping[str, Policy] = MappingProxyType({**POLICIES, **BASELINES})

PAPER_SYSTEMS = ("aegaeon", "sllm", "sllm+", "muxserve")
"""What the figures of the paper compare, and its artifact."""

DEFAULT_SYSTEMS = ("slack", *PAPER_SYSTEMS)


def find_system(name: str, artifact: bool = False) -> Policy:
    """The system of that name; with ``artifact``, as the SOSP'25 artifact has it.

    Raises ``InputError``, which lists those there are, the likest first.
    """
    if artifact and name in ARTIFACT_BASELINES:
        return ARTIFACT_BASELINES[name]
    if name not in SYSTEMS:
        raise InputError(f"no system is called {name!r}; --policy takes: {', '.join(nearest_first(name, SYSTEMS))}")
    return SYSTEMS[name]
