"""The blocks of one slab."""

from __future__ import annotations

from collections.abc import Sequence

from aegaeon.memory.errors import LedgerError


class Slab:
    """``capacity`` blocks of ``block_bytes`` each, beginning at byte ``start_bytes`` of the arena.

    Blocks that were never used are counted, not listed, so assigning a slab is O(1); freed ones are used again last in
    first out, while their bytes are still warm. Invariant: the blocks below the high-water mark are exactly the live
    and the recycled ones.
    """

    __slots__ = ("_high_water", "_live", "_recycled", "block_bytes", "capacity", "start_bytes")

    def __init__(self, start_bytes: int, block_bytes: int, capacity: int) -> None:
        self.start_bytes = start_bytes
        self.block_bytes = block_bytes
        self.capacity = capacity
        self._live: set[int] = set()
        self._recycled: list[int] = []
        self._high_water = 0

    @property
    def live_blocks(self) -> int:
        """Blocks that were given and not taken back."""
        return len(self._live)

    def holds(self, offset: int) -> bool:
        """Whether the block at this byte offset of the arena is live."""
        return offset in self._live

    def take(self, count: int) -> list[int]:
        """Give ``count`` blocks (it must have as many free), as byte offsets in the arena."""
        reused = min(count, len(self._recycled))
        taken = [self._recycled.pop() for _ in range(reused)]
        first = self.start_bytes + self._high_water * self.block_bytes
        self._high_water += count - reused
        taken.extend(range(first, self.start_bytes + self._high_water * self.block_bytes, self.block_bytes))
        self._live.update(taken)
        return taken

    def take_all(self) -> list[int]:
        """Give every block of a slab that has given none yet."""
        return self.take(self.capacity)

    def give_back(self, offsets: Sequence[int]) -> None:
        """Take live blocks back, all or none; ``LedgerError`` where one is none, or is named twice."""
        if len(set(offsets)) < len(offsets) or not self._live.issuperset(offsets):
            wrong = [offset for offset in offsets if offset not in self._live] or list(offsets)
            raise LedgerError(f"no live block begins at byte {wrong[0]}: freed twice, or never allocated")
        self._live.difference_update(offsets)
        self._recycled.extend(offsets)

    def check_integrity(self) -> None:
        """Raise ``LedgerError`` unless live and recycled blocks are the ones below the high-water mark, once each."""
        if self._high_water > self.capacity:
            raise LedgerError(f"slab at {self.start_bytes}: {self._high_water} blocks used of {self.capacity}")
        end = self.start_bytes + self._high_water * self.block_bytes
        if sorted([*self._live, *self._recycled]) != list(range(self.start_bytes, end, self.block_bytes)):
            raise LedgerError(f"slab at {self.start_bytes}: live and free blocks do not add up to {self._high_water}")
