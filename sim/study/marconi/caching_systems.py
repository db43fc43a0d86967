"""The systems that are compared, each as a replay of a trace: what every request could reuse, and what was tuned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Protocol

from sim.study.marconi.block_cache import BlockCache
from sim.study.marconi.bootstrapped_cache import BootstrappedCache
from sim.study.marconi.following_cache import FollowingCache
from sim.study.marconi.hybrid_cache import HybridCache
from sim.study.marconi.hybrid_model import HybridModel
from sim.study.marconi.node_eviction import FlopEfficiency, FlopsPerByteFreed, LeastRecentLeaf
from sim.study.marconi.radix_tree import Tokens
from sim.study.marconi.session_trace import SessionRequest
from sim.study.marconi.static_replays import ALPHAS, MakeEfficiency, StaticReplays


@dataclass(frozen=True, slots=True)
class ReplayedRun:
    """Tokens that each request reused. ``flops``: saved; ``peak_bytes``: the most that was kept.

    ``alpha``: the weight of efficiency in the end, if it has one; ``window``: requests up to the first that was weighed
    by it, whether there are as many or not; ``switches``: how often the leader changed.
    """

    reused: tuple[int, ...]
    flops: float
    peak_bytes: int
    alpha: float | None = None
    window: int | None = None
    switches: int | None = None


@dataclass(frozen=True, slots=True)
class ReplaySetting:
    """``multiplier``: of the requests before the first eviction, for the bootstrap window."""

    requests: Sequence[SessionRequest]
    model: HybridModel
    capacity_bytes: int
    multiplier: int


class _Cache(Protocol):
    @property
    def peak_bytes(self) -> int: ...

    def lookup(self, sequence: Tokens) -> int: ...

    def insert(self, sequence: Tokens) -> None: ...


CachingSystem = Callable[[ReplaySetting, StaticReplays], ReplayedRun]


def _blocks(setting: ReplaySetting, _: StaticReplays) -> ReplayedRun:
    return _run(setting, BlockCache(setting.model, setting.capacity_bytes))


def _least_recent(setting: ReplaySetting, _: StaticReplays) -> ReplayedRun:
    return _run(setting, HybridCache(setting.model, setting.capacity_bytes, LeastRecentLeaf()))


def _bootstrapped(setting: ReplaySetting, statics: StaticReplays) -> ReplayedRun:
    cache = BootstrappedCache(statics, setting.multiplier)
    run = _run(setting, cache)
    return replace(run, alpha=cache.alpha, window=cache.window)


def _oracle(setting: ReplaySetting, statics: StaticReplays) -> ReplayedRun:
    """The weight that finds most; its FLOPs are the most that any weight saves, as the artifact prints them."""
    runs = {alpha: tuple(statics.reused(alpha, len(setting.requests))) for alpha in ALPHAS}
    best = max(ALPHAS, key=lambda alpha: sum(runs[alpha]))
    most = max(map(statics.flops, runs.values()))
    return ReplayedRun(runs[best], most, statics.peak_bytes(best), alpha=best)


def _follower(setting: ReplaySetting, _: StaticReplays) -> ReplayedRun:
    cache = FollowingCache(setting.model, setting.capacity_bytes)
    run = _run(setting, cache)
    return replace(run, switches=cache.switches)


def _run(setting: ReplaySetting, cache: _Cache) -> ReplayedRun:
    reused = []
    for request in setting.requests:
        reused.append(cache.lookup(request.prompt))
        cache.insert(request.prompt + request.answer)
    return ReplayedRun(tuple(reused), sum(map(setting.model.flops, reused)), cache.peak_bytes)


CACHING_SYSTEMS: Mapping[str, tuple[CachingSystem, MakeEfficiency]] = MappingProxyType(
    {
        "vLLM+": (_blocks, FlopEfficiency),
        "V1": (_least_recent, FlopEfficiency),
        "V2": (_bootstrapped, FlopEfficiency),
        "V3": (_oracle, FlopEfficiency),
        "V2-freed": (_bootstrapped, FlopsPerByteFreed),
        "V3-freed": (_oracle, FlopsPerByteFreed),
        "follow": (_follower, FlopEfficiency),
    }
)
"""V1 is SGLang+, V2 is Marconi, V3 is the best fixed weight in hindsight; with ``-freed`` efficiency is over the bytes
that giving up a node frees; ``follow`` is ours."""


def replay_systems(setting: ReplaySetting, names: Sequence[str]) -> dict[str, ReplayedRun]:
    """A run of each system; what they replay alike is replayed once."""
    statics: dict[MakeEfficiency, StaticReplays] = {}
    runs = {}
    for name in names:
        system, efficiency = CACHING_SYSTEMS[name]
        shared = statics.setdefault(
            efficiency, StaticReplays(setting.requests, setting.model, setting.capacity_bytes, efficiency)
        )
        runs[name] = system(setting, shared)
    return runs
