"""A simulated pool, composed in one place: a policy on devices, how fast models are there, what schedulers are told."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from aegaeon.core.cost import CostModel
from aegaeon.core.record import RequestRecord
from aegaeon.core.request import Request
from aegaeon.memory.slab_ledger import SlabLedger
from aegaeon.scheduler.layout import ModelLoad, PlacedInstance, PoolSpec
from aegaeon.scheduler.limits import PoolLimits
from aegaeon.scheduler.policy import Policy
from aegaeon.scheduler.prompt_cost import saved_s
from aegaeon.scheduler.scheduler import Scheduler
from aegaeon.workload import NamedBlocks
from sim.records.tally import Tally
from sim.world.constants import Constants
from sim.world.kept_kv import KeptKv
from sim.world.kv_disk import SimKvDisk
from sim.world.model_facts import SimModel
from sim.world.observer import WorldObserver
from sim.world.world import World

Arrivals = Sequence[tuple[Request, int]]
"""Requests by time, each with the tokens that it will produce."""


@dataclass(frozen=True, slots=True)
class SimPool:
    """``models``, by name, as fast as they are on its ``devices``. ``costs`` and ``limits``: what each node's scheduler
    is told, which need not be what is so. ``contents``: of requests that begin like others, by id; ``prefix_cache``: by
    which policy KV of theirs is given up, or ``"off"``."""

    policy: Policy
    models: Mapping[str, SimModel]
    devices: PoolSpec
    constants: Constants
    costs: CostModel
    limits: PoolLimits
    contents: Mapping[str, NamedBlocks] = field(default_factory=dict)
    prefix_cache: str = "off"

    def world(self, arrivals: Arrivals, observer: WorldObserver) -> World:
        """The world, ready to go. Raises ``NoPlacementError`` where the policy cannot hold the models."""
        specs = [model.spec for model in self.models.values()]
        layout = self.policy.lay_out(self.devices, specs, load_of(arrivals), self.costs)
        make_router = self.policy.router
        router = make_router(specs, len(layout.nodes), self.constants.host_memory_bytes) if make_router else None

        def make_scheduler(instances: tuple[PlacedInstance, ...]) -> Scheduler:
            return self.policy.scheduler(specs, self.costs, self.limits, instances)

        reuses = self.contents and self.prefix_cache != "off"
        make_kept = self._kept_kv if reuses else None
        return World(layout, self.models, self.constants, make_scheduler, arrivals, observer, router, make_kept)

    def _kept_kv(self, slabs: SlabLedger) -> KeptKv:
        disk = SimKvDisk(self.constants.kv_disk_bytes, self.constants.disk_bytes_per_s)
        return KeptKv(slabs, self.contents, self.prefix_cache, partial(saved_s, self.costs), disk)


def simulate_pool(pool: SimPool, arrivals: Arrivals) -> list[RequestRecord]:
    """What came of the requests, in their order, when all have ended."""
    tally = Tally(keep_text=False, keep_records=True)
    pool.world(arrivals, tally).run()
    records = {record.request_id: record for record in tally.records}
    return [records[request.request_id] for request, _ in arrivals]


def load_of(arrivals: Arrivals) -> Mapping[str, ModelLoad]:
    """Mean rates and lengths by model, for systems that place models by them."""
    last_s = max((request.arrival_s for request, _ in arrivals), default=0.0)
    lengths: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for request, new_tokens in arrivals:
        lengths[request.model].append((request.prompt_tokens, new_tokens))
    return {
        name: ModelLoad(
            len(pairs) / max(last_s, 1.0),
            sum(prompt for prompt, _ in pairs) / len(pairs),
            sum(new for _, new in pairs) / len(pairs),
        )
        for name, pairs in lengths.items()
    }
