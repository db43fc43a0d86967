"""Processes that stand by: everything imported, they wait to take the place of one that dies.

One that dies unused is replaced after a pause that grows.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from aegaeon.runtime.process.backoff import INSTANCE_PAUSES, Backoff

logger = logging.getLogger(__name__)

P = TypeVar("P")
Later = Callable[[float, Callable[[], None]], None]


def _in_a_thread(pause_s: float, act: Callable[[], None]) -> None:
    timer = threading.Timer(pause_s, act)
    timer.daemon = True
    timer.start()


class Standbys(Generic[P]):
    """Keeps ``count`` processes; ``start()`` begins to start one, and returns at once. Any thread may call.

    ``later(pause_s, act)`` has something done after a pause.
    """

    def __init__(self, count: int, start: Callable[[], P], later: Later = _in_a_thread) -> None:
        self._count = count
        self._start = start
        self._later = later
        self._waiting: deque[P] = deque()
        self._backoff = Backoff(INSTANCE_PAUSES)
        self._closed = False
        self._lock = threading.Lock()

    def take(self) -> P | None:
        """One that stands by, where there is one; ``fill`` is to be called when it may be replaced."""
        with self._lock:
            self._backoff = Backoff(INSTANCE_PAUSES)
            return self._waiting.popleft() if self._waiting else None

    def lost(self, process: P) -> None:
        """A process has died; where it stood by it is replaced."""
        with self._lock:
            if process not in self._waiting:
                return
            self._waiting.remove(process)
        self._fill_later("a process that stood by died")

    def fill(self) -> None:
        """Start what is missing."""
        try:
            with self._lock:
                while not self._closed and len(self._waiting) < self._count:
                    self._waiting.append(self._start())
        except Exception as error:
            logger.debug("a process to stand by cannot be started", exc_info=True)
            self._fill_later(f"a process to stand by cannot be started ({error})")

    def _fill_later(self, why: str) -> None:
        with self._lock:
            pause_s = self._backoff.pause_s(ran_well=False)
        logger.warning("%s; another starts in %.0f s", why, pause_s)
        self._later(pause_s, self.fill)

    def close(self) -> list[P]:
        """Start no more; those that wait, which the caller ends."""
        with self._lock:
            self._closed = True
            waiting, self._waiting = list(self._waiting), deque()
        return waiting
