"""A small process that outlives a driver by a moment, to kill its instances when it dies: also those that are stopped,
which could not see that for themselves.

Instances are children of Ray's, not of their driver's, so the kernel cannot be asked to do this.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading

_WAIT_S = 5.0


class Reaper:
    """The driver's side; any thread may use it."""

    def __init__(self) -> None:
        # Isolated and without site: it is up in milliseconds and depends on nothing that may be missing.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__], stdin=subprocess.PIPE, start_new_session=True
        )
        self._lock = threading.Lock()

    @property
    def pid(self) -> int:
        return self._process.pid

    def watch(self, pid: int) -> None:
        """Have a process killed when this one ends."""
        assert self._process.stdin is not None
        with self._lock:
            self._process.stdin.write(b"%d\n" % pid)
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
    if not select.select([fd], [], [], within_s)[0]:
        return False
    os.close(fd)
    return True


if __name__ == "__main__":
    _reap()
