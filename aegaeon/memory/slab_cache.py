"""The node's KV slab cache: which blocks of its slabs are live.

A block is known by its byte offset in the arena: ``slab index * slab_bytes + index in the slab * block_bytes``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import TypeAlias

from aegaeon.core.kv_shape import KvShape
from aegaeon.memory.errors import LedgerError
from aegaeon.memory.slab import Slab
from aegaeon.memory.slab_ledger import SlabLedger

BlockOffset: TypeAlias = int


class SlabCache(SlabLedger):
    """A ``SlabLedger`` whose blocks are known one by one; it says how many of which slab, ``Slab`` which ones."""

    def __init__(self, total_bytes: int, slab_bytes: int) -> None:
        super().__init__(total_bytes, slab_bytes)
        self._slabs: dict[int, Slab] = {}  # the assigned ones

    def allocate(self, shape: KvShape, count: int) -> tuple[BlockOffset, ...]:
        """Give ``count`` blocks of a registered shape, all or none. Raises ``OutOfSlabsError``."""
        offsets: list[BlockOffset] = []
        for index, share in self.take(shape, count):
            offsets += self._slab(index).take(share)
        return tuple(offsets)

    def restore(self, blocks: Mapping[BlockOffset, KvShape]) -> None:
        """Have exactly these blocks live, in a cache that has given none yet. Raises ``LedgerError``."""
        claims: dict[int, KvShape] = {}
        for offset, shape in blocks.items():
            if claims.setdefault(self._slab_of(offset), shape) != shape:
                raise LedgerError(f"slab {self._slab_of(offset)} has blocks of several shapes")
        self.take_slabs(claims)
        whole = {offset for index in claims for offset in self._slab(index).take_all()}
        if not blocks.keys() <= whole:
            raise LedgerError(f"no block begins at byte {min(blocks.keys() - whole)}")
        self.free(sorted(whole - blocks.keys()))

    def free(self, offsets: Iterable[BlockOffset]) -> None:
        """Take blocks back. Raises ``LedgerError`` at the first run of one slab with a block that is not live.

        The runs before it are freed, it is not.
        """
        for index, run in groupby(offsets, self._slab_of):  # neighbours are mostly of one slab
            blocks = list(run)
            slab = self._slabs.get(index)
            if slab is None:
                raise LedgerError(f"byte {blocks[0]} is in no assigned slab: freed twice, or never allocated")
            slab.give_back(blocks)
            self.give_back(((index, len(blocks)),))
            if not slab.live_blocks:
                del self._slabs[index]

    def is_live(self, shape: KvShape, offset: BlockOffset) -> bool:
        """Whether a live block of this shape begins here."""
        index = self._slab_of(offset)
        return self._serving(index) is self._slabs_of(shape) and self._slabs[index].holds(offset)

    def check_integrity(self) -> None:
        """Raise ``LedgerError`` unless slabs, shapes and blocks add up."""
        super().check_integrity()
        assigned = {index: slabs for index, slabs in enumerate(self._serves) if slabs is not None}
        if assigned.keys() != self._slabs.keys():
            raise LedgerError(f"slabs {sorted(assigned)} serve a shape, those with blocks are {sorted(self._slabs)}")
        for index, slab in self._slabs.items():
            slab.check_integrity()
            if slab.live_blocks != assigned[index].live_in(index):
                raise LedgerError(f"slab {index} has {slab.live_blocks} live blocks; its shape disagrees")

    def _slab(self, index: int) -> Slab:
        """A slab that serves a shape, listed with its first block."""
        slab = self._slabs.get(index)
        if slab is None:
            slabs = self._serves[index]
            assert slabs is not None, f"slab {index} gives blocks, but serves no shape"
            slab = self._slabs[index] = Slab(index * self.slab_bytes, slabs.block_bytes, slabs.blocks_per_slab)
        return slab

    def _slab_of(self, offset: BlockOffset) -> int:
        return offset // self.slab_bytes
