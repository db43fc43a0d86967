"""Which blocks of KV are on disk, by name, and which are given up when others need their room: the least recently used.

A name says all that comes before its block, too, so what is found under the names of a sequence is that sequence's.
Does not know files, or whether they are what they are called.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import takewhile


class DiskIndex:
    """Room for ``total_bytes``."""

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        self.used_bytes = 0
        self.evicted_blocks = 0
        self._sizes: dict[bytes, int] = {}  # least recently used first

    def __contains__(self, name: object) -> bool:
        return name in self._sizes

    def __len__(self) -> int:
        return len(self._sizes)

    def run(self, names: Iterable[bytes]) -> int:
        """How many of the first of these are here."""
        return sum(1 for _ in takewhile(self._sizes.__contains__, names))

    def add(self, name: bytes, size_bytes: int) -> None:
        """A block is here, used just now."""
        self.remove(name)
        self._sizes[name] = size_bytes
        self.used_bytes += size_bytes

    def remove(self, name: bytes) -> None:
        """It is not; unknown names are ignored."""
        self.used_bytes -= self._sizes.pop(name, 0)

    def use(self, names: Sequence[bytes]) -> None:
        """Somebody goes through these blocks of one sequence: of what nobody uses its end goes before its beginning."""
        for name in reversed(names):
            size_bytes = self._sizes.pop(name, None)
            if size_bytes is not None:
                self._sizes[name] = size_bytes

    def make_room(self, size_bytes: int) -> tuple[bytes, ...]:
        """Forget blocks until so much is free, or nothing is left: those that are forgotten."""
        gone: list[bytes] = []
        while self._sizes and self.used_bytes + size_bytes > self.total_bytes:
            gone.append(next(iter(self._sizes)))
            self.remove(gone[-1])
        self.evicted_blocks += len(gone)
        return tuple(gone)
