"""Processes as the kernel knows them: one that a pid stood for may be gone, and its pid another's.

Standard library only: a supervisor that must never fail uses it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import time
from dataclasses import dataclass
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36
_START_FIELD = 19  # of /proc/PID/stat behind the name: clock ticks between boot and the process's start
_TIMES = slice(11, 13)  # likewise: ticks in user and in kernel mode
_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class ProcessId:
    """One process for good: its pid and when it started."""

    pid: int
    started_ticks: int

    @classmethod
    def of(cls, pid: int) -> ProcessId:
        """The process that has this pid now. Raises ``OSError`` where there is none."""
        return cls(pid, _started_ticks(pid))

    @classmethod
    def own(cls) -> ProcessId:
        """This process."""
        return cls.of(os.getpid())

    def kill(self, within_s: float) -> bool:
        """Kill it, also where it is stopped, and wait until it has ended; False where that takes longer."""
        return self._await_end(within_s, signal.SIGKILL)

    def wait(self, within_s: float) -> bool:
        """Whether it has ended, after a while at the latest."""
        return self._await_end(within_s, None)

    def _await_end(self, within_s: float, number: signal.Signals | None) -> bool:
        try:
            fd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return True
        try:
            if _started_ticks(self.pid) != self.started_ticks:
                return True  # the pid is another's by now
            if number is not None:
                signal.pidfd_send_signal(fd, number)
            poll = select.poll()  # select() takes no descriptor above 1023
            poll.register(fd, select.POLLIN)
            return bool(poll.poll(within_s * 1000))
        except (ProcessLookupError, FileNotFoundError):
            return True
        finally:
            os.close(fd)


def processor_ticks(pid: int) -> int:
    """Processor time that a child has had, in clock ticks."""
    user, system = _stat(pid)[_TIMES]
    return int(user) + int(system)


def _started_ticks(pid: int) -> int:
    return int(_stat(pid)[_START_FIELD])


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()


def die_with_parent(parent_pid: int | None = None) -> None:
    """Have the kernel kill this process when its parent ends, however that ends, also while this process is stopped.

    ``parent_pid``: who the parent is; where it is gone already, this process ends here.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if parent_pid is not None and os.getppid() != parent_pid:
        os._exit(1)


def set_name(name: str) -> None:
    """What ``top`` and ``ps`` call this process; its first 15 bytes."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)


def adopt_orphans(wanted: bool = True) -> None:
    """Become the parent of descendants whose own parent dies, so that none is lost sight of; or no longer."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0)


def children() -> set[int]:
    """This process's children, ended ones that nobody has waited for included."""
    own, found = os.getpid(), set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):  # it ended meanwhile
                if int(_stat(int(entry.name))[1]) == own:
                    found.add(int(entry.name))
    return found


def kill_children(but: set[int], within_s: float) -> bool:
    """Kill this process's children and, as they become its own (``adopt_orphans``), their descendants; False where some
    are still there after ``within_s``. Those in ``but`` stay, with all that descends from them."""
    deadline_s = time.monotonic() + within_s
    while found := children() - but:
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        if time.monotonic() > deadline_s:
            return False
        time.sleep(_POLL_S)
    return True
