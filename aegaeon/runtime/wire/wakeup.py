"""Run callbacks on a loop's own thread, from any thread."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable


class Wakeup:
    """Callbacks posted by other threads; watch ``fd`` and ``run`` them."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._callbacks: deque[Callable[[], None]] = deque()
        self._closed = False
        self._lock = threading.Lock()  # the descriptor may be another's once it is closed

    def post(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` run on the loop's thread; any thread may call this. After ``close`` nothing is run."""
        with self._lock:
            if not self._closed:
                self._callbacks.append(callback)
                os.eventfd_write(self.fd, 1)

    def run(self) -> None:
        """Run what was posted, in order."""
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            return
        while self._callbacks:
            self._callbacks.popleft()()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            os.close(self.fd)
