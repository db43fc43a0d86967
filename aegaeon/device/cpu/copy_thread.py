"""A thread that carries out work in order: a stream on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from threading import Condition, Thread

from aegaeon.device.common.errors import DeviceError

Work = Callable[[], object]


class CopyThread:
    """Work is numbered from 1, its ticket; what was given first is done first. Work must not raise.

    A piece of work may wait for a ticket of another thread: tickets name only what was given before, so threads cannot
    wait for each other in a circle.
    """

    def __init__(self, name: str) -> None:
        self._queue: SimpleQueue[Work | None] = SimpleQueue()
        self._issued = 0
        self._done = 0
        self._progress = Condition()
        self._thread = Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def issued(self) -> int:
        """The ticket of the last piece of work."""
        return self._issued

    def submit(self, work: Work) -> int:
        """Give work; returns its ticket. What the work refers to is let go before the ticket is done."""
        if not self._thread.is_alive():
            raise DeviceError("the device is closed: copies must begin before that")
        self._issued += 1
        self._queue.put(work)
        return self._issued

    def is_done(self, ticket: int) -> bool:
        """Whether the first ``ticket`` pieces of work are done."""
        return self._done >= ticket

    def wait(self, ticket: int) -> None:
        """Block until they are."""
        with self._progress:
            self._progress.wait_for(lambda: self._done >= ticket)

    def close(self) -> None:
        """Finish all work and end the thread; idempotent."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        for work in iter(self._queue.get, None):
            work()
            del work
            with self._progress:
                self._done += 1
                self._progress.notify_all()
