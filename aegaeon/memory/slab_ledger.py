"""Which slab serves which KV shape, and how many of its blocks are live: slabs in numbers.

Whoever needs to know blocks by their place in the arena keeps a ``SlabCache``, which is one of these and decides alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from aegaeon.core.kv_shape import KvShape
from aegaeon.memory.errors import LedgerError
from aegaeon.memory.shape_slabs import ShapeSlabs, SlabShare
from aegaeon.memory.slab_usage import SlabUsage


class OutOfSlabsError(Exception):
    """The cache has no room for these blocks now; nothing was allocated. Back pressure, not a failure."""

    def __init__(self, shape: KvShape, wanted_blocks: int, available_blocks: int) -> None:
        super().__init__(
            f"{wanted_blocks} blocks of shape {shape.label} are wanted, {available_blocks} can be had: "
            f"finish or drop a request, or give the KV cache more memory"
        )
        self.wanted_blocks = wanted_blocks
        self.available_blocks = available_blocks


class BlockTooLargeError(ValueError):
    """A shape cannot live in slabs of this size; the message says which size would do."""


class SlabLedger:
    """Slabs of ``slab_bytes``, each unassigned or serving one shape; it is unassigned again with its last block freed.

    Unassigned slabs are used again last in first out (their memory is touched already), the fullest assigned ones
    first: see ``ShapeSlabs``. Everything is deterministic, and O(1) for each slab that is touched. A remainder of
    ``total_bytes`` smaller than a slab is left alone.
    """

    def __init__(self, total_bytes: int, slab_bytes: int) -> None:
        if not 0 < slab_bytes <= total_bytes:
            raise ValueError(f"a slab cache of {total_bytes} bytes holds no slab of {slab_bytes} bytes")
        self.slab_bytes = slab_bytes
        self.slabs = total_bytes // slab_bytes
        self._unassigned = list(reversed(range(self.slabs)))  # a stack
        self._serves: list[ShapeSlabs | None] = [None] * self.slabs
        self._shapes: dict[KvShape, ShapeSlabs] = {}
        self._by_id: dict[int, ShapeSlabs] = {}
        self._registered: list[KvShape] = []  # keeps the ids in _by_id alive

    @property
    def total_bytes(self) -> int:
        """Bytes of all slabs."""
        return self.slabs * self.slab_bytes

    @property
    def free_bytes(self) -> int:
        """Bytes of unassigned slabs."""
        return len(self._unassigned) * self.slab_bytes

    @property
    def assigned_bytes(self) -> int:
        """Bytes of the slabs that serve a shape."""
        return self.total_bytes - self.free_bytes

    @property
    def used_bytes(self) -> int:
        """Bytes of live blocks."""
        return sum(slabs.live_blocks * slabs.block_bytes for slabs in self._shapes.values())

    @property
    def live_blocks(self) -> int:
        """Live blocks of all shapes."""
        return sum(slabs.live_blocks for slabs in self._shapes.values())

    @property
    def shapes(self) -> tuple[KvShape, ...]:
        """The registered shapes, equal ones once, in order of registration."""
        return tuple(self._shapes)

    def register(self, shape: KvShape) -> None:
        """Announce a shape; ``BlockTooLargeError`` where it cannot be served. Equal shapes share slabs."""
        if shape.block_bytes > self.slab_bytes:
            raise BlockTooLargeError(
                f"a block of shape {shape.label} has {shape.block_bytes} bytes, a slab only {self.slab_bytes}: "
                f"make slabs at least that large, or blocks of fewer than {shape.block_tokens} tokens"
            )
        if self.slab_bytes % shape.aligned_bytes:
            raise BlockTooLargeError(f"slabs must be a multiple of {shape.aligned_bytes} bytes, not {self.slab_bytes}")
        if id(shape) not in self._by_id:
            slabs = self._shapes.setdefault(shape, ShapeSlabs(shape, self.slab_bytes))
            self._by_id[id(shape)] = slabs
            self._registered.append(shape)

    def available(self, shape: KvShape) -> int:
        """Blocks of this shape that could be had now."""
        slabs = self._slabs_of(shape)
        return slabs.free_blocks + len(self._unassigned) * slabs.blocks_per_slab

    def can_allocate(self, shape: KvShape, count: int) -> bool:
        """Whether so many blocks could be had now."""
        return count <= self.available(shape)

    def capacity(self, shape: KvShape) -> int:
        """Blocks of this shape that the whole cache could hold: a request that needs more can never be served."""
        return self._slabs_of(shape).blocks_per_slab * self.slabs

    def take(self, shape: KvShape, count: int) -> list[SlabShare]:
        """Give ``count`` blocks of a registered shape, all or none; returns how many of which slab, in order.

        Raises ``OutOfSlabsError``.
        """
        slabs = self._slabs_of(shape)
        if count < 0:
            raise LedgerError(f"{count} blocks of shape {shape.label} are asked for")
        if count > slabs.free_blocks:
            self._assign(slabs, count)
        return slabs.take(count)

    def take_slabs(self, claims: Mapping[int, KvShape]) -> None:
        """Give all blocks of these very slabs, in a cache that has given none yet. Raises ``LedgerError``."""
        if self.assigned_bytes or any(not 0 <= index < self.slabs for index in claims):
            raise LedgerError(f"slabs {sorted(claims)} cannot be taken: the cache is in use, or has only {self.slabs}")
        self._unassigned = [index for index in self._unassigned if index not in claims]
        for index, shape in claims.items():
            slabs = self._serves[index] = self._slabs_of(shape)
            slabs.add(index)
            slabs.take(slabs.blocks_per_slab)  # of this one: the others are full

    def give_back(self, shares: Iterable[SlabShare]) -> None:
        """Take blocks back, slab by slab. Raises ``LedgerError`` at the first slab that has not so many live ones."""
        for index, count in shares:
            slabs = self._serving(index)
            if slabs is None:
                raise LedgerError(f"slab {index} is assigned to no shape: freed twice, or never allocated")
            if slabs.give_back(index, count):
                self._serves[index] = None
                self._unassigned.append(index)

    def usage(self, shape: KvShape | None = None) -> SlabUsage:
        """Slabs, assigned and used bytes of a shape, or of all of them."""
        if shape is None:
            return SlabUsage(self.slabs - len(self._unassigned), self.assigned_bytes, self.used_bytes)
        slabs = self._slabs_of(shape)
        return SlabUsage(slabs.slabs, slabs.slabs * self.slab_bytes, slabs.live_blocks * slabs.block_bytes)

    def check_integrity(self) -> None:
        """Raise ``LedgerError`` unless every slab is unassigned or serves one shape, and its blocks add up."""
        for slabs in self._shapes.values():
            slabs.check_integrity()
            if slabs.slabs != sum(server is slabs for server in self._serves):
                raise LedgerError(f"shape {slabs.shape.label} has {slabs.slabs} slabs; the cache disagrees")
        unassigned = [index for index, server in enumerate(self._serves) if server is None]
        if sorted(self._unassigned) != unassigned:
            raise LedgerError(f"slabs {unassigned} serve no shape, but {sorted(self._unassigned)} are listed as free")
        usages = [self.usage(shape) for shape in self._shapes]
        if sum(usage.assigned_bytes for usage in usages) + self.free_bytes != self.total_bytes:
            raise LedgerError(f"assigned and free bytes do not add up to {self.total_bytes}")

    def _assign(self, slabs: ShapeSlabs, count: int) -> None:
        """Let a shape have as many more slabs as ``count`` blocks need."""
        wanted_slabs = -(-(count - slabs.free_blocks) // slabs.blocks_per_slab)
        if wanted_slabs > len(self._unassigned):
            raise OutOfSlabsError(slabs.shape, count, self.available(slabs.shape))
        fresh = [self._unassigned.pop() for _ in range(wanted_slabs)]
        for index in reversed(fresh):  # the slab that is added last is filled first
            self._serves[index] = slabs
            slabs.add(index)

    def _serving(self, index: int) -> ShapeSlabs | None:
        return self._serves[index] if 0 <= index < self.slabs else None

    def _slabs_of(self, shape: KvShape) -> ShapeSlabs:
        """A shape's slabs, by identity first: hashing a shape of many layers costs more than everything else here."""
        slabs = self._by_id.get(id(shape)) or self._shapes.get(shape)
        if slabs is None:
            raise LedgerError(f"shape {shape.label} is not registered")
        return slabs
