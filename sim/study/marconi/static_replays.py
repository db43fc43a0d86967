"""Replays of one trace on one cache size with the weight of efficiency held fixed: each as far as it has been asked
for. What an oracle compares, a tuner judges by and a follower watches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sim.study.marconi.hybrid_cache import HybridCache
from sim.study.marconi.hybrid_model import HybridModel
from sim.study.marconi.node_eviction import FlopEfficiency
from sim.study.marconi.session_trace import SessionRequest

ALPHAS = tuple(tenths / 10 for tenths in range(21))

MakeEfficiency = Callable[[HybridModel, float], FlopEfficiency]


class StaticReplays:
    """``efficiency``: which of the policies that weigh it."""

    def __init__(
        self,
        requests: Sequence[SessionRequest],
        model: HybridModel,
        capacity_bytes: int,
        efficiency: MakeEfficiency = FlopEfficiency,
    ) -> None:
        self.requests = requests
        self.model = model
        self.capacity_bytes = capacity_bytes
        self.efficiency = efficiency
        self._replays: dict[float, tuple[HybridCache, list[int]]] = {}

    def cache(self, alpha: float) -> HybridCache:
        """An empty one under that policy."""
        return HybridCache(self.model, self.capacity_bytes, self.efficiency(self.model, alpha))

    def reused(self, alpha: float, requests: int) -> Sequence[int]:
        """Tokens that each of the first requests could reuse; possibly of some more."""
        if alpha not in self._replays:
            self._replays[alpha] = self.cache(alpha), []
        cache, found = self._replays[alpha]
        for request in self.requests[len(found) : requests]:
            found.append(cache.lookup(request.prompt))
            cache.insert(request.prompt + request.answer)
        return found

    def peak_bytes(self, alpha: float) -> int:
        """The most that was kept under that weight."""
        return self._replays[alpha][0].peak_bytes

    def flops(self, reused: Sequence[int]) -> float:
        """What requests saved that reused so many tokens each."""
        return sum(map(self.model.flops, reused))
