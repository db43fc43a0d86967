"""Processes that have everything imported and wait to become an instance: what dies is replaced in a second.

Importing torch and Transformers takes many seconds, and two at a time take longer. So spares are started only when no
instance is on its way, and replaced as they are taken. One that dies unused is replaced after a pause that grows.
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


class Spares(Generic[P]):
    """Keeps ``count`` processes; ``start()`` begins to start one, and returns at once. Any thread may call.

    ``later(pause_s, act)`` has something done after a pause.
    """

    def __init__(self, count: int, start: Callable[[], P], later: Later = _in_a_thread) -> None:
        self._count = count
        self._start = start
        self._later = later
        self._waiting: deque[P] = deque()
        self._under_way = 0  # instances whose processes are not up yet
        self._backoff = Backoff(INSTANCE_PAUSES)
        self._closed = False
        self._lock = threading.Lock()

    def take(self) -> P:
        """A process for an instance: a spare, or else a new one. Call ``up`` once it has come up, or died.

        Raises what ``start`` does; then there is nothing to call ``up`` for."""
        with self._lock:
            process = self._waiting.popleft() if self._waiting else self._start()
            self._under_way += 1
            return process

    @property
    def complete(self) -> bool:
        """Whether as many wait, or are on their way, as are wanted."""
        with self._lock:
            return not self._under_way and len(self._waiting) >= self._count

    def keep(self, count: int) -> None:
        """So many are wanted from now on; those that wait already stay."""
        with self._lock:
            self._count = count

    def take_waiting(self) -> P | None:
        """A spare, where there is one; ``up`` is not to be called for it, ``fill`` when it may be replaced."""
        with self._lock:
            return self._waiting.popleft() if self._waiting else None

    def up(self) -> None:
        """A process that was taken has everything imported, or is dead."""
        with self._lock:
            self._under_way -= 1
            self._backoff = Backoff(INSTANCE_PAUSES)
        self.fill()

    def lost(self, process: P) -> None:
        """A process has died; where it was a spare it is replaced."""
        with self._lock:
            if process not in self._waiting:
                return
            self._waiting.remove(process)
        self._fill_later("a spare process died")

    def fill(self) -> None:
        """Start what is missing, unless instances are on their way: they come first."""
        try:
            with self._lock:
                while not self._closed and not self._under_way and len(self._waiting) < self._count:
                    self._waiting.append(self._start())
        except Exception as error:
            logger.debug("a spare process cannot be started", exc_info=True)
            self._fill_later(f"a spare process cannot be started ({error})")

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
