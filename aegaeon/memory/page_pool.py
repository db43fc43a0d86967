"""Ownership of a device's fixed physical pages."""

from __future__ import annotations

from collections.abc import Sequence

from aegaeon.memory.errors import LedgerError


class OutOfPagesError(Exception):
    """Fewer pages are free than were asked for; nothing was allocated."""

    def __init__(self, owner: str, wanted_pages: int, free_pages: int, pages: int, page_bytes: int) -> None:
        super().__init__(
            f"{owner} needs {wanted_pages} pages of {page_bytes} bytes, but {free_pages} of {pages} are free: "
            f"evict something, or give the device more memory"
        )
        self.wanted_pages = wanted_pages
        self.free_pages = free_pages


class PagePool:
    """Pages ``0 .. pages - 1`` of ``page_bytes`` each; a page is free or has exactly one owner.

    The lowest free pages go first, so allocation is deterministic and neighbours tend to stay together (backends map
    a run of neighbours with one call). Pages come and go by the hundred, so the free ones are a sorted list: a call is
    one pass over it, whatever the number of pages it is about.
    """

    def __init__(self, pages: int, page_bytes: int) -> None:
        if pages < 0 or page_bytes < 1:
            raise ValueError(f"a page pool needs a page size and no negative number of pages: {pages} x {page_bytes}")
        self.pages = pages
        self.page_bytes = page_bytes
        self._free = list(range(pages))  # ascending
        self._held: dict[str, set[int]] = {}

    @property
    def free_pages(self) -> int:
        """Pages without an owner."""
        return len(self._free)

    @property
    def free_bytes(self) -> int:
        """Bytes of the pages without an owner."""
        return self.free_pages * self.page_bytes

    @property
    def owners(self) -> tuple[str, ...]:
        """Everyone who holds a page, in the order of their first one."""
        return tuple(self._held)

    def owned(self, owner: str) -> tuple[int, ...]:
        """The pages of an owner, ascending; empty if it has none."""
        return tuple(sorted(self._held.get(owner, ())))

    def allocate(self, owner: str, count: int) -> tuple[int, ...]:
        """Give ``count`` pages to ``owner``, all or none.

        Raises ``OutOfPagesError`` where fewer are free.
        """
        if count < 0:
            raise LedgerError(f"{owner} asks for {count} pages")
        if count > len(self._free):
            raise OutOfPagesError(owner, count, len(self._free), self.pages, self.page_bytes)
        taken = tuple(self._free[:count])
        del self._free[:count]
        if taken:
            self._held.setdefault(owner, set()).update(taken)
        return taken

    def free(self, owner: str, pages: Sequence[int]) -> None:
        """Take pages back from their owner, all or none. Raises ``LedgerError`` where one is not its."""
        held = self._held.get(owner, set())
        wanted = set(pages)
        if len(wanted) != len(pages) or not wanted <= held:
            raise LedgerError(f"{owner} frees pages {list(pages)}, but holds {sorted(held)}")
        self._put_back(pages)
        held -= wanted
        if not held:
            self._held.pop(owner, None)

    def free_owner(self, owner: str) -> tuple[int, ...]:
        """Take back all that an owner holds; returns those pages, ascending."""
        pages = self.owned(owner)
        self._held.pop(owner, None)
        self._put_back(pages)
        return pages

    def check_integrity(self) -> None:
        """Raise ``LedgerError`` unless every page is free or owned, exactly once."""
        everywhere = sorted([*self._free, *(page for held in self._held.values() for page in held)])
        if everywhere != list(range(self.pages)):
            lost = sorted(set(range(self.pages)) - set(everywhere))
            raise LedgerError(f"pages are counted {len(everywhere)} times instead of {self.pages}; lost: {lost}")
        idle = [owner for owner, held in self._held.items() if not held]
        if idle:
            raise LedgerError(f"owners without a page are still listed: {idle}")

    def _put_back(self, pages: Sequence[int]) -> None:
        self._free += pages
        self._free.sort()  # of two sorted runs: a merge
