"""A process's sign of life, in a page of memory that it shares with its driver.

A small thread counts ``beats``: they stop when the whole process does (SIGSTOP, a swapped-out or frozen process, code
that never lets go of Python's lock). The loop counts ``passes`` and says what it is at: they stop when a kernel or a
copy hangs, while the thread goes on. Counters, not times: the driver compares them with its own clock. Layout::

    | pid: u64 | beats: u64 | passes: u64 | expected: f64 |

``expected`` is how many seconds the loop's present work should take: negative while it waits for messages, infinite
where nothing is known.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
import threading
from typing import Protocol

from aegaeon.runtime.wire.pulse_reading import PulseReading

_PULSE = struct.Struct("<QQQd")
_U64 = struct.Struct("<Q")
_LOOP = struct.Struct("<Qd")
_BEATS_AT, _PASSES_AT = 8, 16
_BYTES = mmap.PAGESIZE
_WAITING = -1.0


class LoopPulse(Protocol):
    """Where a loop says what it is at."""

    def wait(self) -> None:
        """It waits for messages, however long that takes."""
        ...

    def work(self, expected_s: float | None = None) -> None:
        """It begins a piece of work that takes so many seconds; None: nobody knows."""
        ...


class NoPulse:
    """The pulse of a loop that nobody watches."""

    def wait(self) -> None: ...

    def work(self, expected_s: float | None = None) -> None: ...


def create_pulse() -> int:
    """The descriptor of a new pulse; each side opens it with a duplicate."""
    fd = os.memfd_create("aegaeon-pulse", os.MFD_CLOEXEC)
    os.ftruncate(fd, _BYTES)
    os.pwrite(fd, _PULSE.pack(0, 0, 0, math.inf), 0)  # nothing is known of one that has not begun
    return fd


class PulseReader:
    """The driver's side; owns ``fd``."""

    def __init__(self, fd: int) -> None:
        self._memory = _map(fd)

    def read(self) -> PulseReading:
        pid, beats, passes, expected_s = _PULSE.unpack_from(self._memory)
        known = math.isfinite(expected_s) and expected_s >= 0
        return PulseReading(pid, beats, passes, expected_s < 0, expected_s if known else None)

    def close(self) -> None:
        self._memory.close()


class Pulse:
    """The process's side; owns ``fd``. Beats every ``interval_s`` from now until ``close``."""

    def __init__(self, fd: int, interval_s: float) -> None:
        self._memory = _map(fd)
        self._passes = 0
        self._ended = threading.Event()
        self.work()
        _U64.pack_into(self._memory, 0, os.getpid())
        self._thread = threading.Thread(target=self._beat, args=(interval_s,), name="pulse", daemon=True)
        self._thread.start()

    def _beat(self, interval_s: float) -> None:
        beats = 0
        while not self._ended.wait(interval_s if beats else 0.0):
            beats += 1
            _U64.pack_into(self._memory, _BEATS_AT, beats)

    def wait(self) -> None:
        self._pass(_WAITING)

    def work(self, expected_s: float | None = None) -> None:
        self._pass(math.inf if expected_s is None else expected_s)

    def _pass(self, expected_s: float) -> None:
        self._passes += 1
        _LOOP.pack_into(self._memory, _PASSES_AT, self._passes, expected_s)

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        self._memory.close()


def _map(fd: int) -> mmap.mmap:
    """The page; the mapping needs the descriptor no longer."""
    try:
        return mmap.mmap(fd, _BYTES)
    finally:
        os.close(fd)
