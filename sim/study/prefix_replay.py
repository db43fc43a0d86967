"""How much of all prompts is found again by caches of any size: requests one after another, each over at once.

Nothing but the cache is simulated, and that by what the simulated node keeps its KV with.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from aegaeon.memory.slab_ledger import SlabLedger
from aegaeon.scheduler.prompt_cost import saved_s
from aegaeon.workload import NamedBlocks
from sim.study.run import make_costs
from sim.study.scenario import Scenario
from sim.world.constants import Constants
from sim.world.kept_kv import KeptKv
from sim.world.kv_disk import SimKvDisk
from sim.world.request_state import RequestState


@dataclass(frozen=True, slots=True)
class Reuse:
    """Tokens of prompts, and of those what was found; bytes of KV that gave way, or would be kept without a limit."""

    prompt_tokens: int
    found_tokens: int
    evicted_bytes: int = 0
    kept_bytes: int = 0

    @property
    def hit_rate(self) -> float:
        return self.found_tokens / max(1, self.prompt_tokens)


def unlimited(scenario: Scenario) -> Reuse:
    """What a cache without a limit finds: a set of all names so far."""
    seen: set[tuple[str, str, int]] = set()
    prompt_tokens = found_tokens = kept_bytes = 0
    for request, new_tokens in scenario.arrivals:
        prompt_tokens += request.prompt_tokens
        content = scenario.contents.get(request.request_id)
        if content is None:
            continue

        def is_new(index: int, model: str = request.model, content: NamedBlocks = content) -> bool:
            return (model, content.scope, content[index]) not in seen

        prompt, end = (
            min(tokens // content.block_tokens, len(content))
            for tokens in (request.prompt_tokens - 1, request.prompt_tokens + new_tokens - 1)
        )
        found_tokens += bisect_left(range(prompt), True, key=is_new) * content.block_tokens
        old = bisect_left(range(end), True, key=is_new)
        seen.update((request.model, content.scope, content[index]) for index in range(old, end))
        kept_bytes += (end - old) * content.block_tokens * scenario.models[request.model].token_bytes
    return Reuse(prompt_tokens, found_tokens, kept_bytes=kept_bytes)


def replay(scenario: Scenario, policy: str, cache_bytes: int, constants: Constants) -> Reuse:
    """What a cache of a size finds by a policy; a request that does not fit it leaves it as it is."""
    slabs = SlabLedger(max(cache_bytes, constants.slab_bytes), constants.slab_bytes)
    for shape in {id(model.spec.kv_shape): model.spec.kv_shape for model in scenario.models.values()}.values():
        slabs.register(shape)
    kept = KeptKv(
        slabs, scenario.contents, policy, partial(saved_s, make_costs(scenario, constants)), SimKvDisk(0, 1.0)
    )
    for request, new_tokens in scenario.arrivals:
        state = RequestState(request, scenario.models[request.model], new_tokens)
        kept.arrive(state, request.arrival_s)
        kept.seat(state, request.arrival_s)
        shape, tokens = state.model.spec.kv_shape, request.prompt_tokens + new_tokens - 1
        missing = state.model.blocks_for(tokens) - state.blocks
        if kept.make_room(shape, missing):
            state.hold(slabs.take(shape, missing)[::-1], missing)
            state.kv_tokens = tokens
        kept.leave(state, state.kv_tokens)
    return Reuse(kept.prompt_tokens, kept.found_tokens, kept.evicted_bytes, kept.kept_bytes)


def curves(
    scenario: Scenario, policies: Sequence[str], sizes: Sequence[int], constants: Constants
) -> dict[str, list[tuple[int, Reuse]]]:
    """By policy: (bytes of the cache, what it finds)."""
    return {policy: [(size, replay(scenario, policy, size, constants)) for size in sizes] for policy in policies}
