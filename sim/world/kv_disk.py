"""A node's disk as a place for KV: what of it is there, and when what is read has come. Writing takes nobody's time."""

from __future__ import annotations

from collections.abc import Sequence

from aegaeon.memory.disk_index import DiskIndex


class SimKvDisk:
    """Room for ``total_bytes``; reads go one after the other."""

    def __init__(self, total_bytes: int, bytes_per_s: float) -> None:
        self.index = DiskIndex(total_bytes)
        self._bytes_per_s = bytes_per_s
        self._free_s = 0.0
        self._coming_s: dict[bytes, float] = {}  # when what is being read has come, in this order

    def keep(self, name: bytes, size_bytes: int) -> None:
        """KV is written, unless it is there or larger than all."""
        if name not in self.index and size_bytes <= self.index.total_bytes:
            self.index.make_room(size_bytes)
            self.index.add(name, size_bytes)

    def read(self, names: Sequence[bytes], size_bytes: int, saved_s: float, now_s: float) -> float | None:
        """When so much KV under these names is in host memory; None where it takes no less than ``saved_s``, and is not
        read."""
        while self._coming_s and next(iter(self._coming_s.values())) <= now_s:
            del self._coming_s[next(iter(self._coming_s))]
        coming_s = self._coming_s.get(names[0], 0.0)
        if coming_s > now_s:
            return coming_s  # with another that comes for the same
        ready_s = max(now_s, self._free_s) + size_bytes / self._bytes_per_s
        if ready_s - now_s >= saved_s:
            return None
        self._free_s = ready_s
        self._coming_s.update(dict.fromkeys(names, ready_s))
        self.index.use(names)
        return ready_s
