"""A small process that outlives a driver by a moment, to kill its instances when it dies: also those that are stopped,
which could not see that for themselves.

The kernel ends what was forked with its fork server, but nobody ends that one where it is stopped.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aegaeon.runtime.process.process import ProcessId

_WAIT_S = 5.0


class Reaper:
    """The driver's side; any thread may use it."""

    def __init__(self) -> None:
        self._process = self._begin()
        self._pids: list[int] = []
        self._lock = threading.Lock()

    @staticmethod
    def _begin() -> subprocess.Popen[bytes]:
        # Isolated and without site: it is up in milliseconds and depends on nothing that may be missing.
        command = [sys.executable, "-I", "-S", __file__]
        return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    @property
    def process(self) -> ProcessId:
        """Who it is: another one, when somebody killed the one before."""
        from aegaeon.runtime.process.process import ProcessId  # not above: the process itself has nothing of ours

        with self._lock:
            return ProcessId.of(self._process.pid)

    def watch(self, pid: int) -> None:
        """Have a process killed when this one ends. Raises ``OSError`` where that cannot be."""
        with self._lock:
            self._pids = [own for own in self._pids if Path(f"/proc/{own}").exists()] + [pid]
            try:
                self._tell([pid])
            except BrokenPipeError:  # somebody killed it
                self._process.communicate()  # lets go of the pipe, too
                self._process = self._begin()
                self._tell(self._pids)

    def _tell(self, pids: Sequence[int]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(b"".join(b"%d\n" % pid for pid in pids))
        self._process.stdin.flush()

    def close(self) -> None:
        """Kill now what is left, and wait until it is gone."""
        self._process.communicate()


def _reap() -> None:
    """Read pids until the driver has ended, then kill those that are left."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    watched: list[int] = []
    for line in sys.stdin:
        watched = [fd for fd in watched if not _ended(fd, 0.0)]
        try:
            watched.append(os.pidfd_open(int(line)))
        except ProcessLookupError:
            continue
    for fd in watched:
        try:
            signal.pidfd_send_signal(fd, signal.SIGKILL)
        except ProcessLookupError:
            continue
    for fd in watched:
        _ended(fd, _WAIT_S)


def _ended(fd: int, within_s: float) -> bool:
    """Whether a process has ended; its descriptor is closed then."""
    poll = select.poll()  # select() takes no descriptor above 1023
    poll.register(fd, select.POLLIN)
    if not poll.poll(within_s * 1000):
        return False
    os.close(fd)
    return True


if __name__ == "__main__":
    _reap()
