"""A buddy allocator (Knowlton 1965): runs of 2^k blocks that are halved, and joined again with the other half."""

from __future__ import annotations


class BuddyPool:
    """Blocks ``0 .. blocks - 1``; runs begin at a multiple of their size and have at most ``1 << largest`` blocks.

    What does not make up a whole largest run is cut into the next smaller ones. Of the smallest size that suffices the
    run that came free last goes first.
    """

    def __init__(self, blocks: int, largest: int) -> None:
        self.largest = largest
        self.used_blocks = 0
        self._free: list[dict[int, None]] = [{} for _ in range(largest + 1)]  # stacks, in order of insertion
        start = 0
        for order in reversed(range(largest + 1)):
            while start + (1 << order) <= blocks:
                self._free[order][start] = None
                start += 1 << order

    def has(self, order: int, count: int) -> bool:
        """Whether so many runs of ``1 << order`` blocks can be had together."""
        runs = 0
        for larger in range(order, self.largest + 1):
            runs += len(self._free[larger]) << (larger - order)
            if runs >= count:
                return True
        return False

    def take(self, order: int) -> int:
        """The first block of a run that there must be."""
        found = next(larger for larger in range(order, self.largest + 1) if self._free[larger])
        start, _ = self._free[found].popitem()
        for smaller in reversed(range(order, found)):
            self._free[smaller][start + (1 << smaller)] = None
        self.used_blocks += 1 << order
        return start

    def give_back(self, start: int, order: int) -> None:
        """Take a run back, and join it with its other half as often as that is free."""
        self.used_blocks -= 1 << order
        while order < self.largest and start ^ (1 << order) in self._free[order]:
            del self._free[order][start ^ (1 << order)]
            start &= ~(1 << order)
            order += 1
        self._free[order][start] = None
