"""The slabs that serve one KV shape, kept by how full they are.

Does not know: other shapes, unassigned slabs, who holds a block.
"""

from __future__ import annotations

from collections.abc import Sequence

from aegaeon.core.kv_shape import KvShape
from aegaeon.memory.errors import LedgerError
from aegaeon.memory.slab import Slab

CLASSES = 64


class ShapeSlabs:
    """Allocates blocks of one shape from the fullest slabs first.

    Filling the fullest slab leaves the emptiest alone, so those drain and go back to the cache, where another shape can
    have them. Fullness is kept in 64 classes, with a bit mask of the classes that have a slab, so finding the fullest
    slab is O(1) whatever their number (the fullness groups of Hoard: Berger et al., ASPLOS 2000). Within a class the
    slab that entered it last goes first.
    """

    def __init__(self, shape: KvShape, slab_bytes: int) -> None:
        self.shape = shape
        self.block_bytes = shape.block_bytes
        self.blocks_per_slab = slab_bytes // self.block_bytes
        self._slab_bytes = slab_bytes
        self.live_blocks = 0
        self._slabs: dict[int, Slab] = {}
        self._classes: list[dict[int, Slab]] = [{} for _ in range(CLASSES + 1)]  # by free space; class 0 is full
        self._populated = 0  # bit k: class k > 0 has a slab

    @property
    def slabs(self) -> int:
        """Slabs assigned to this shape."""
        return len(self._slabs)

    @property
    def free_blocks(self) -> int:
        """Blocks to be had without another slab."""
        return self.slabs * self.blocks_per_slab - self.live_blocks

    def add(self, index: int) -> None:
        """Take an unassigned slab in."""
        slab = Slab(index * self._slab_bytes, self.block_bytes, self.blocks_per_slab)
        self._slabs[index] = slab
        self._enter(index, slab)

    def holds(self, index: int, offset: int) -> bool:
        """Whether the block at this byte offset is live; ``index`` is its slab, one of this shape."""
        return self._slabs[index].holds(offset)

    def take(self, count: int) -> list[int]:
        """Give ``count <= free_blocks`` blocks."""
        taken: list[int] = []
        while len(taken) < count:
            index, slab = self._pop_fullest()
            taken += slab.take(min(count - len(taken), slab.free_blocks))
            self._enter(index, slab)
        self.live_blocks += count
        return taken

    def give_back(self, index: int, offsets: Sequence[int]) -> bool:
        """Take blocks of slab ``index`` back, all or none; True where its last one was there, and the slab has left."""
        slab = self._slabs[index]
        before = self._class_of(slab)
        slab.give_back(offsets)
        self.live_blocks -= len(offsets)
        if slab.live_blocks == 0:
            self._leave(index, before)
            del self._slabs[index]
            return True
        if self._class_of(slab) != before:
            self._leave(index, before)
            self._enter(index, slab)
        return False

    def check_integrity(self) -> None:
        """Raise ``LedgerError`` unless counts, classes and the mask agree with the slabs."""
        for index, slab in self._slabs.items():
            slab.check_integrity()
            if slab.live_blocks == 0 or index not in self._classes[self._class_of(slab)]:
                raise LedgerError(f"slab {index} of {self.shape.label} is empty or in the wrong class")
        if sum(map(len, self._classes)) != self.slabs:
            raise LedgerError(f"a slab of {self.shape.label} is in two classes")
        if self._populated != sum(1 << rank for rank in range(1, CLASSES + 1) if self._classes[rank]):
            raise LedgerError(f"the mask of classes of {self.shape.label} is wrong: {self._populated:b}")
        if self.live_blocks != sum(slab.live_blocks for slab in self._slabs.values()):
            raise LedgerError(f"{self.shape.label} counts {self.live_blocks} live blocks, its slabs disagree")

    def _class_of(self, slab: Slab) -> int:
        """0 for a full slab, else 1 (fullest) to 64 (empty)."""
        return -(-slab.free_blocks * CLASSES // slab.capacity)

    def _pop_fullest(self) -> tuple[int, Slab]:
        rank = (self._populated & -self._populated).bit_length() - 1
        index, slab = self._classes[rank].popitem()
        if not self._classes[rank]:
            self._populated &= ~(1 << rank)
        return index, slab

    def _enter(self, index: int, slab: Slab) -> None:
        rank = self._class_of(slab)
        self._classes[rank][index] = slab
        if rank:
            self._populated |= 1 << rank

    def _leave(self, index: int, rank: int) -> None:
        del self._classes[rank][index]
        if rank and not self._classes[rank]:
            self._populated &= ~(1 << rank)
