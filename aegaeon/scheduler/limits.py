"""Capacities and bounds of one node's pool, as numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """What a scheduler must keep to.

    ``kv_cache_bytes`` is the node's KV slab cache, cut into slabs of ``slab_bytes``. ``kv_reserve_share`` of it is kept
    free for requests under way: no prefill is started that would take it. ``max_group_requests`` and ``max_quota_s``
    are the paper's group size and QMAX. A request whose turns fail ``max_failed_turns`` times is given up. The node's
    host memory holds weights of ``host_weight_bytes`` (None: of all models).
    """

    kv_cache_bytes: int
    slab_bytes: int
    max_queued_requests: int = 4096
    max_group_requests: int = 8
    max_quota_s: float = 4.0
    kv_reserve_share: float = 0.01
    min_retry_after_s: float = 1.0
    max_failed_turns: int = 3
    host_weight_bytes: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.slab_bytes <= self.kv_cache_bytes:
            raise ValueError(f"a KV cache of {self.kv_cache_bytes} bytes has no slab of {self.slab_bytes} bytes")
        if min(self.max_queued_requests, self.max_group_requests, self.max_failed_turns) < 1:
            raise ValueError(f"queue, group and failure bounds must be at least one: {self}")
        if not (self.max_quota_s > 0 and 0 <= self.kv_reserve_share < 1 and self.min_retry_after_s >= 0):
            raise ValueError(f"quota, reserve and retry bounds are out of range: {self}")

    @property
    def slabs(self) -> int:
        """Slabs in the cache."""
        return self.kv_cache_bytes // self.slab_bytes
