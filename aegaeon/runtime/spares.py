"""Processes that have everything imported and wait to become an instance: what dies is replaced in a second.

Importing torch and Transformers takes many seconds, and two at a time take longer. So spares are started only when no
instance is on its way, and replaced as they are taken.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

logger = logging.getLogger(__name__)

P = TypeVar("P")


class Spares(Generic[P]):
    """Keeps ``count`` processes; ``start()`` begins to start one, and returns at once. Any thread may call."""

    def __init__(self, count: int, start: Callable[[], P]) -> None:
        self._count = count
        self._start = start
        self._waiting: deque[P] = deque()
        self._under_way = 0  # instances whose processes are not up yet
        self._closed = False
        self._lock = threading.Lock()

    def take(self) -> P:
        """A process for an instance: a spare, or else a new one. Call ``up`` once it has come up, or died."""
        with self._lock:
            self._under_way += 1
            if self._waiting:
                return self._waiting.popleft()
        return self._start()

    def up(self) -> None:
        """A process that was taken has everything imported, or is dead."""
        with self._lock:
            self._under_way -= 1
        self.fill()

    def lost(self, process: P) -> None:
        """A process has died; where it was a spare it is replaced."""
        with self._lock:
            if process not in self._waiting:
                return
            self._waiting.remove(process)
        logger.warning("a spare process died")
        self.fill()

    def fill(self) -> None:
        """Start what is missing, unless instances are on their way: they come first."""
        with self._lock:
            while not self._closed and not self._under_way and len(self._waiting) < self._count:
                self._waiting.append(self._start())

    def close(self) -> list[P]:
        """Start no more; those that wait, which the caller ends."""
        with self._lock:
            self._closed = True
            waiting, self._waiting = list(self._waiting), deque()
        return waiting
