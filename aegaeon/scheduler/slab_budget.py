"""Which requests hold KV in the node's slab cache, and whether another prompt still fits: an estimate from reports."""

from __future__ import annotations

from bisect import bisect_left, insort

from aegaeon.scheduler.facts import PolicyFacts
from aegaeon.scheduler.job import Job
from aegaeon.scheduler.limits import PoolLimits

_Order = tuple[float, int]


class SlabBudget:
    """Reservations by request. Slabs serve one KV shape at a time, so slabs are counted by shape, rounded up.

    ``refusals`` counts how often ``admits`` said no; ``first_refused`` is who is waited for.
    """

    def __init__(self, limits: PoolLimits) -> None:
        self.refusals = 0
        self._slab_bytes = limits.slab_bytes
        self._slabs = limits.slabs
        self._usable_bytes = limits.kv_cache_bytes * (1.0 - limits.kv_reserve_share)
        self._blocks: dict[str, int] = {}  # by request
        self._holders: list[tuple[_Order, Job]] = []  # by arrival, no two at one
        self._dropping: set[str] = set()  # only asked for membership: no order
        self._shape_blocks: dict[int, int] = {}
        self._used_slabs = 0
        self._used_bytes = 0
        self.first_refused: Job | None = None
        self._exhausted = False

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._blocks

    def __len__(self) -> int:
        """Requests that hold KV and are not losing it."""
        return len(self._holders)

    @property
    def dropping(self) -> bool:
        """Whether some KV is about to come free."""
        return bool(self._dropping)

    def capacity_blocks(self, facts: PolicyFacts) -> int:
        """Blocks of the model's shape that the whole cache holds."""
        return self._slabs * (self._slab_bytes // facts.block_bytes)

    def admits(self, job: Job) -> bool:
        """Whether the KV of ``job`` may be put into the cache beside what others hold.

        Who was refused first is served first: while that request waits, nobody who arrived after it is admitted.
        After an exhaustion nobody is until a holder has left, for then the estimate was too low.
        """
        if job.request_id in self._blocks:
            return True
        if self.first_refused is not None and self.first_refused.order < job.order:
            self.refusals += 1
            return False
        if not self.has_room(job):
            self.first_refused = job
            self.refusals += 1
            return False
        return True

    def has_room(self, job: Job) -> bool:
        """Whether the KV of ``job`` fits beside what others hold, whoever else waits."""
        return not self._exhausted and self._fits(job)

    def reserve(self, job: Job) -> None:
        """Count the KV of ``job``, or correct what is counted for it after its context was reported."""
        blocks = job.kv_blocks
        if job.request_id not in self._blocks:
            insort(self._holders, (job.order, job))
            self.pass_over(job)
        self._count(job.facts, blocks - self._blocks.get(job.request_id, 0))
        self._blocks[job.request_id] = blocks

    def drop(self, job: Job) -> None:
        """The KV of ``job`` is being dropped; it counts until ``release``, but ``job`` is no holder any more."""
        if job.request_id in self._blocks:
            self._remove_holder(job)
        self._dropping.add(job.request_id)

    def release(self, job: Job) -> None:
        """The KV of ``job`` is free: take back its reservation, if it has one."""
        self.pass_over(job)
        blocks = self._blocks.pop(job.request_id, 0)
        self._count(job.facts, -blocks)
        if job.request_id in self._dropping:
            self._dropping.remove(job.request_id)
        elif blocks:
            self._remove_holder(job)
            self._exhausted = False

    def pass_over(self, job: Job) -> None:
        """``job`` cannot be prefilled anywhere now: nobody waits for it."""
        if self.first_refused is not None and self.first_refused.order == job.order:
            self.first_refused = None

    def exhausted(self) -> None:
        """The cache turned out to be full: admit nobody until a holder has left."""
        self._exhausted = True

    def last_arrived(self) -> Job | None:
        """The holder that arrived last."""
        return self._holders[-1][1] if self._holders else None

    def _remove_holder(self, job: Job) -> None:
        del self._holders[bisect_left(self._holders, (job.order,))]

    def _fits(self, job: Job) -> bool:
        extra_bytes = job.kv_blocks * job.facts.block_bytes
        extra_slabs = self._extra_slabs(job.facts, job.kv_blocks)
        return self._used_bytes + extra_bytes <= self._usable_bytes and self._used_slabs + extra_slabs <= self._slabs

    def _count(self, facts: PolicyFacts, blocks: int) -> None:
        self._used_slabs += self._extra_slabs(facts, blocks)
        self._used_bytes += blocks * facts.block_bytes
        self._shape_blocks[facts.shape_id] = self._shape_blocks.get(facts.shape_id, 0) + blocks

    def _extra_slabs(self, facts: PolicyFacts, blocks: int) -> int:
        slab_blocks = self._slab_bytes // facts.block_bytes
        before = self._shape_blocks.get(facts.shape_id, 0)
        return -(-(before + blocks) // slab_blocks) - -(-before // slab_blocks)
