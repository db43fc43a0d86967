"""Marconi's cache (``V2``): recency alone at first, then the weight of efficiency that would have saved most FLOPs."""

from __future__ import annotations

from sim.study.marconi.hybrid_cache import HybridCache
from sim.study.marconi.radix_tree import Tokens
from sim.study.marconi.static_replays import ALPHAS, StaticReplays

_JUDGED_REQUESTS = 500  # the last of a bootstrap window


class BootstrappedCache(HybridCache):
    """Tuned once, by replays of all requests so far, when they are ``multiplier`` times those before the first
    eviction: that many make the ``window``. Each request is looked up, then inserted."""

    def __init__(self, statics: StaticReplays, multiplier: int) -> None:
        self._weighed = statics.efficiency(statics.model, 0.0)
        super().__init__(statics.model, statics.capacity_bytes, self._weighed)
        self._statics = statics
        self._multiplier = multiplier
        self._requests = 0
        self.window: int | None = None

    @property
    def alpha(self) -> float:
        """The weight of efficiency now."""
        return self._weighed.alpha

    def insert(self, sequence: Tokens) -> None:
        """Keep a sequence, as room allows; the request that makes the window full is the first that is weighed anew."""
        self._requests += 1
        if self._requests == self.window:
            self._weighed.alpha = max(ALPHAS, key=self._judged)
        super().insert(sequence)
        if self.window is None and self.evictions:
            self.window = self._multiplier * self._requests

    def _judged(self, alpha: float) -> float:
        reused = self._statics.reused(alpha, self._requests)
        return self._statics.flops(reused[max(0, self._requests - _JUDGED_REQUESTS) : self._requests])
