"""Our cache (``follow``): it does what the best of several others does, and knows which that is from their books."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import inf

from sim.study.marconi.hybrid_cache import HybridCache
from sim.study.marconi.hybrid_model import HybridModel
from sim.study.marconi.node_eviction import StaleFirst
from sim.study.marconi.radix_tree import Tokens

_ALPHAS = (0.1, 0.7, 1.5)
_PATIENCES = (2.0, 5.0, inf)
_MEMORY = 0.995  # what a request counts after the next one: the last two hundred decide
_LEAD = 1.02


@dataclass(slots=True)
class _Guide:
    """``patience``: over how long things stay under recency alone. ``found``: tokens, of late."""

    cache: HybridCache
    eviction: StaleFirst
    patience: float
    found: float = 0.0


class FollowingCache(HybridCache):
    """Beside it the books of a few fixed policies are kept, from the first request on: trees without bytes, of recency
    alone and of ``StaleFirst`` with several weights and patiences. The cache takes the policy of the one that has found
    most of late; a new leader has to lead by two per cent."""

    def __init__(self, model: HybridModel, capacity_bytes: int) -> None:
        self._chosen = StaleFirst(model, 0.0)
        super().__init__(model, capacity_bytes, self._chosen)
        self._guides = [
            _guide(model, capacity_bytes, alpha, patience)
            for alpha, patience in ((0.0, inf), *product(_ALPHAS, _PATIENCES))
        ]
        self._leader = self._guides[0]
        self.switches = 0

    def lookup(self, sequence: Tokens) -> int:
        """How many leading tokens can be reused; the guides are asked, too."""
        for guide in self._guides:
            guide.found = guide.found * _MEMORY + guide.cache.lookup(sequence)
        best = max(self._guides, key=lambda guide: guide.found)
        if best.found > self._leader.found * _LEAD:
            self._leader = best
            self._chosen.alpha = best.eviction.alpha
            self.switches += 1
        return super().lookup(sequence)

    def insert(self, sequence: Tokens) -> None:
        """Keep a sequence, as room allows; the guides do so, too."""
        stays = self._guides[0].cache.patience
        for guide in self._guides:
            guide.eviction.patience = guide.patience * stays
            guide.cache.insert(sequence)
        self._chosen.patience = self._leader.patience * stays
        super().insert(sequence)


def _guide(model: HybridModel, capacity_bytes: int, alpha: float, patience: float) -> _Guide:
    eviction = StaleFirst(model, alpha)
    return _Guide(HybridCache(model, capacity_bytes, eviction), eviction, patience)
