"""A device's pages and ranges together: the single source of truth for what its memory holds."""

from __future__ import annotations

from aegaeon.memory.errors import LedgerError
from aegaeon.memory.page_pool import PagePool
from aegaeon.memory.virtual_range import PageRun, VirtualRangeMap


class DeviceLedger:
    """Named ranges that map pages of one pool; a page is free, or at exactly one position of one range.

    Every method that changes the mapping returns runs, in ascending order: what the device must map or unmap for it to
    agree with the ledger again.
    """

    def __init__(self, pages: int, page_bytes: int) -> None:
        self._pool = PagePool(pages, page_bytes)
        self._ranges: dict[str, VirtualRangeMap] = {}

    @property
    def page_bytes(self) -> int:
        """Size of a page."""
        return self._pool.page_bytes

    @property
    def total_bytes(self) -> int:
        """Bytes of all pages."""
        return self._pool.pages * self.page_bytes

    @property
    def free_bytes(self) -> int:
        """Bytes of the pages that are mapped nowhere."""
        return self._pool.free_bytes

    def reserve(self, name: str, size_bytes: int) -> int:
        """Enter a range, once and for life; returns its size in bytes, rounded up to whole pages."""
        if name in self._ranges:
            raise LedgerError(f"range {name} is reserved already")
        self._ranges[name] = VirtualRangeMap(size_bytes, self.page_bytes)
        return self._ranges[name].size_bytes

    def mapped_bytes(self, name: str) -> int:
        """Bytes of a range that pages back."""
        return self._range(name).mapped_bytes

    def missing_bytes(self, name: str, offset_bytes: int, size_bytes: int) -> int:
        """Bytes of pages that ``map`` would take for the same span."""
        return len(self._range(name).holes(offset_bytes, size_bytes)) * self.page_bytes

    def map(self, name: str, offset_bytes: int, size_bytes: int) -> tuple[PageRun, ...]:
        """Back the whole span; what is backed already stays. Raises ``OutOfPagesError``, having changed nothing."""
        mapping = self._range(name)
        holes = mapping.holes(offset_bytes, size_bytes)
        return mapping.map(holes, self._pool.allocate(name, len(holes)))

    def unmap(self, name: str, offset_bytes: int, size_bytes: int) -> tuple[PageRun, ...]:
        """Free every page that the span touches. The device must unmap them before they are mapped again."""
        runs = self._range(name).unmap(offset_bytes, size_bytes)
        for run in runs:
            self._pool.free(name, run.pages)
        return runs

    def unmap_all(self, name: str) -> tuple[PageRun, ...]:
        """Free every page of a range; the range stays reserved."""
        return self.unmap(name, 0, self._range(name).size_bytes)

    def release(self, name: str) -> tuple[PageRun, ...]:
        """Free every page of a range and forget it."""
        runs = self.unmap_all(name)
        del self._ranges[name]
        return runs

    def check_integrity(self) -> None:
        """Raise ``LedgerError`` unless pool and ranges are right in themselves and tell the same story."""
        self._pool.check_integrity()
        for mapping in self._ranges.values():
            mapping.check_integrity()
        held = {owner: self._pool.owned(owner) for owner in sorted(self._pool.owners)}
        mapped = {name: tuple(sorted(self._ranges[name].pages)) for name in sorted(self._ranges)}
        mapped = {name: pages for name, pages in mapped.items() if pages}
        if held != mapped:
            raise LedgerError(f"the pool says {held} are held, the ranges say {mapped} are mapped")

    def _range(self, name: str) -> VirtualRangeMap:
        if name not in self._ranges:
            raise LedgerError(f"no range {name} is reserved; there are {sorted(self._ranges)}")
        return self._ranges[name]
