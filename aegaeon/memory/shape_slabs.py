"""The slabs that serve one KV shape, kept by how full they are."""

from __future__ import annotations

from typing import TypeAlias

from aegaeon.core.kv_shape import KvShape
from aegaeon.memory.errors import LedgerError

CLASSES = 64

SlabShare: TypeAlias = tuple[int, int]
"""(index of a slab, a number of its blocks)."""


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
        self.free_blocks = 0  # to be had without another slab
        self._live: dict[int, int] = {}  # live blocks by slab
        self._classes: list[dict[int, None]] = [{} for _ in range(CLASSES + 1)]  # by free space; class 0 is full
        self._populated = 0  # bit k: class k > 0 has a slab

    @property
    def slabs(self) -> int:
        """Slabs assigned to this shape."""
        return len(self._live)

    @property
    def live_blocks(self) -> int:
        """Blocks that were given and not taken back."""
        return len(self._live) * self.blocks_per_slab - self.free_blocks

    def live_in(self, index: int) -> int:
        """Live blocks of one of its slabs."""
        return self._live[index]

    def add(self, index: int) -> None:
        """Take an unassigned slab in."""
        self._live[index] = 0
        self.free_blocks += self.blocks_per_slab
        self._enter(index, CLASSES)

    def take(self, count: int) -> list[SlabShare]:
        """Give ``count <= free_blocks`` blocks; returns how many of which slab, in order."""
        taken: list[SlabShare] = []
        left = count
        while left:
            rank = (self._populated & -self._populated).bit_length() - 1
            index = next(reversed(self._classes[rank]))
            live = self._live[index]
            share = min(left, self.blocks_per_slab - live)
            self._live[index] = live + share
            self._move(index, rank, self._class_of(live + share))
            taken.append((index, share))
            left -= share
        self.free_blocks -= count
        return taken

    def give_back(self, index: int, count: int) -> bool:
        """Take ``count`` blocks of slab ``index`` back; True where its last one was there, and the slab has left."""
        before = self._live[index]
        live = before - count
        if live < 0:
            raise LedgerError(f"slab {index} has {before} live blocks, not {count}: freed twice, or never allocated")
        self.free_blocks += count
        rank = self._class_of(before)
        if not live:
            self._leave(index, rank)
            self.free_blocks -= self.blocks_per_slab
            del self._live[index]
            return True
        self._live[index] = live
        self._move(index, rank, self._class_of(live))
        return False

    def check_integrity(self) -> None:
        """Raise ``LedgerError`` unless counts, classes and the mask agree."""
        for index, live in self._live.items():
            if not 0 < live <= self.blocks_per_slab or index not in self._classes[self._class_of(live)]:
                raise LedgerError(f"slab {index} of {self.shape.label} has {live} blocks or is in the wrong class")
        if sum(map(len, self._classes)) != self.slabs:
            raise LedgerError(f"a slab of {self.shape.label} is in two classes")
        if self._populated != sum(1 << rank for rank in range(1, CLASSES + 1) if self._classes[rank]):
            raise LedgerError(f"the mask of classes of {self.shape.label} is wrong: {self._populated:b}")
        if self.live_blocks != sum(self._live.values()):
            raise LedgerError(f"{self.shape.label} counts {self.live_blocks} live blocks, its slabs disagree")

    def _class_of(self, live: int) -> int:
        """0 for a full slab, else 1 (fullest) to 64 (empty)."""
        return -((live - self.blocks_per_slab) * CLASSES // self.blocks_per_slab)

    def _move(self, index: int, before: int, after: int) -> None:
        if before != after:
            self._leave(index, before)
            self._enter(index, after)

    def _enter(self, index: int, rank: int) -> None:
        self._classes[rank][index] = None
        if rank:
            self._populated |= 1 << rank

    def _leave(self, index: int, rank: int) -> None:
        slabs = self._classes[rank]
        del slabs[index]
        if rank and not slabs:
            self._populated &= ~(1 << rank)
