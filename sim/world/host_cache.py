"""Which models' weights are in a node's host memory, and when others are there: least recently used go first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


class HostCache:
    """Bounded in bytes; ``disk_bytes_per_s`` is shared: reads go one after the other.

    It starts warm: the models that are ``warm`` (None: all) in order, as far as they fit. A model larger than the cache
    is read every time.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        capacity_bytes: int,
        disk_bytes_per_s: float,
        warm: Iterable[str] | None = None,
    ) -> None:
        self._sizes = sizes
        self._capacity_bytes = capacity_bytes
        self._disk_bytes_per_s = disk_bytes_per_s
        self._ready_s: dict[str, float] = {}  # by model, least recently used first
        self._used_bytes = 0
        self._disk_free_s = 0.0
        self.reads = 0
        self._warm(sizes if warm is None else warm)

    def __contains__(self, model: str) -> bool:
        return model in self._ready_s

    @property
    def models(self) -> tuple[str, ...]:
        """Models that are there or on their way, least recently used first."""
        return tuple(self._ready_s)

    def drop(self, model: str) -> None:
        """Give up a model that is there, or on its way."""
        if self._ready_s.pop(model, None) is not None:
            self._used_bytes -= self._sizes[model]

    def fetch(self, model: str, now_s: float) -> float:
        """When all bytes of the model are in host memory, reading them from disk where they are not."""
        ready_s = self._ready_s.pop(model, None)
        if ready_s is None:
            ready_s = self._read(model, now_s)
        if self._sizes[model] <= self._capacity_bytes:
            self._ready_s[model] = ready_s
        return ready_s

    def _read(self, model: str, now_s: float) -> float:
        size_bytes = self._sizes[model]
        self.reads += 1
        self._disk_free_s = max(now_s, self._disk_free_s) + size_bytes / self._disk_bytes_per_s
        if size_bytes <= self._capacity_bytes:
            self._make_room(size_bytes)
            self._used_bytes += size_bytes
        return self._disk_free_s

    def _make_room(self, size_bytes: int) -> None:
        while self._used_bytes + size_bytes > self._capacity_bytes:
            victim = next(iter(self._ready_s))
            del self._ready_s[victim]
            self._used_bytes -= self._sizes[victim]

    def _warm(self, models: Iterable[str]) -> None:
        for model in models:
            if self._used_bytes + self._sizes[model] > self._capacity_bytes:
                return
            self._ready_s[model] = 0.0
            self._used_bytes += self._sizes[model]
