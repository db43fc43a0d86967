"""The systems that can be simulated, by name.

Does not know: hardware, workloads, how a run goes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from functools import partial
from types import MappingProxyType

from aegaeon.core.cost import CostModel
from aegaeon.core.model import ModelSpec
from aegaeon.scheduler.limits import PoolLimits
from aegaeon.scheduler.registry import POLICIES, ROUTERS
from aegaeon.scheduler.scheduler import Scheduler
from sim.errors import InputError
from sim.policies.systems import ARTIFACT_BASELINES, BASELINES
from sim.pooled_layout import disaggregated_layout, mixed_layout
from sim.shared_layout import shared_layout
from sim.system import PlacedInstance, System

SLACK_CHUNK_TOKENS = 1024
"""What ``slack`` has prompts cut into: a due token waits for a chunk at most (about 30 ms on an H100)."""


def _pool_scheduler(
    policy: str, models: Sequence[ModelSpec], costs: CostModel, limits: PoolLimits, instances: Sequence[PlacedInstance]
) -> Scheduler:
    """The production policy of that name: it learns of its instances as they join."""
    return POLICIES[policy](models, costs, limits)


def _production_systems() -> dict[str, System]:
    """Every policy of the pool; ``aegaeon`` keeps prefill and decode apart, others run on mixed instances."""
    systems = {name: System(name, mixed_layout, partial(_pool_scheduler, name), ROUTERS.get(name)) for name in POLICIES}
    return {
        **systems,
        "aegaeon": replace(systems["aegaeon"], layout=disaggregated_layout),
        "slack": replace(systems["slack"], layout=shared_layout, prefill_chunk_tokens=SLACK_CHUNK_TOKENS),
    }


SYSTEMS: Mapping[str, System] = MappingProxyType({**_production_systems(), **BASELINES})

PAPER_SYSTEMS = ("aegaeon", "sllm", "sllm+", "muxserve")
"""What the figures of the paper compare, and its artifact."""

DEFAULT_SYSTEMS = ("slack", *PAPER_SYSTEMS)


def find_system(name: str, artifact: bool = False) -> System:
    """The system of that name; with ``artifact``, as the SOSP'25 artifact has it.

    Raises ``InputError``, which lists those there are, the likest first.
    """
    if artifact and name in ARTIFACT_BASELINES:
        return ARTIFACT_BASELINES[name]
    if name in SYSTEMS:
        return SYSTEMS[name]
    nearest = sorted(SYSTEMS, key=lambda known: (-SequenceMatcher(None, name, known).ratio(), known))
    raise InputError(f"no system is called {name!r}; --policy takes: {', '.join(nearest)}")
