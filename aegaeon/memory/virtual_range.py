"""Which page lies at which position of an address range that was reserved once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from aegaeon.memory.errors import LedgerError


@dataclass(frozen=True, slots=True)
class PageRun:
    """Pages at neighbouring positions of a range, beginning ``offset_bytes`` into it: one call of a device."""

    offset_bytes: int
    pages: tuple[int, ...]


class VirtualRangeMap:
    """The positions of one range, each ``page_bytes`` long and empty or backed by one page.

    Spans are given in bytes and rounded outward to whole pages: what shares a page is mapped and unmapped together.
    """

    def __init__(self, size_bytes: int, page_bytes: int) -> None:
        if size_bytes < 1 or page_bytes < 1:
            raise ValueError(f"a range needs a size and a page size: {size_bytes} bytes, pages of {page_bytes}")
        self.page_bytes = page_bytes
        self.positions = -(-size_bytes // page_bytes)
        self._page_at: dict[int, int] = {}

    @property
    def size_bytes(self) -> int:
        """Size of the range, a whole number of pages."""
        return self.positions * self.page_bytes

    @property
    def mapped_bytes(self) -> int:
        """Bytes of the range that are backed by pages."""
        return len(self._page_at) * self.page_bytes

    @property
    def pages(self) -> tuple[int, ...]:
        """The pages that back the range, by position."""
        return tuple(self._page_at[position] for position in sorted(self._page_at))

    def holes(self, offset_bytes: int, size_bytes: int) -> tuple[int, ...]:
        """Positions that a span touches and no page backs, ascending."""
        return tuple(position for position in self._touched(offset_bytes, size_bytes) if position not in self._page_at)

    def map(self, positions: Sequence[int], pages: Sequence[int]) -> tuple[PageRun, ...]:
        """Back empty positions with pages, one each; all or none. Returns them as runs."""
        taken = [position for position in positions if position in self._page_at]
        outside = [position for position in positions if not 0 <= position < self.positions]
        doubled = set(self._page_at.values()).intersection(pages)
        if taken or outside or doubled:
            raise LedgerError(f"cannot map: positions taken {taken}, outside {outside}, pages in use {sorted(doubled)}")
        if not len(positions) == len(pages) == len(set(positions)) == len(set(pages)):
            raise LedgerError(f"cannot map pages {list(pages)} at positions {list(positions)}: not one to one")
        placed = dict(zip(positions, pages, strict=True))
        self._page_at |= placed
        return self._runs(placed.items())

    def unmap(self, offset_bytes: int, size_bytes: int) -> tuple[PageRun, ...]:
        """Empty every position that a span touches, if it is not empty already; returns what was there."""
        touched = [position for position in self._touched(offset_bytes, size_bytes) if position in self._page_at]
        return self._runs([(position, self._page_at.pop(position)) for position in touched])

    def check_integrity(self) -> None:
        """Raise ``LedgerError`` unless positions are inside the range and no page is at two of them."""
        if any(not 0 <= position < self.positions for position in self._page_at):
            raise LedgerError(f"positions outside 0..{self.positions - 1} are mapped: {sorted(self._page_at)}")
        if len(set(self._page_at.values())) != len(self._page_at):
            raise LedgerError(f"a page is mapped at two positions: {self._page_at}")

    def _touched(self, offset_bytes: int, size_bytes: int) -> range:
        if offset_bytes < 0 or size_bytes < 0 or offset_bytes + size_bytes > self.size_bytes:
            raise LedgerError(
                f"span of {size_bytes} bytes at {offset_bytes} leaves the range of {self.size_bytes} bytes"
            )
        if size_bytes == 0:
            return range(0)
        return range(offset_bytes // self.page_bytes, -(-(offset_bytes + size_bytes) // self.page_bytes))

    def _runs(self, placed: Iterable[tuple[int, int]]) -> tuple[PageRun, ...]:
        return tuple(PageRun(first * self.page_bytes, tuple(pages)) for first, pages in _neighbours(sorted(placed)))


def _neighbours(placed: Iterable[tuple[int, int]]) -> Iterator[tuple[int, list[int]]]:
    """Group ascending (position, page) pairs by consecutive positions, as (first position, pages)."""
    first, pages = 0, list[int]()
    for position, page in placed:
        if pages and position == first + len(pages):
            pages.append(page)
            continue
        if pages:
            yield first, pages
        first, pages = position, [page]
    if pages:
        yield first, pages
