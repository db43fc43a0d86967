"""A hold on a process that somebody else started: its end is known at once, and it can be ended, as long as it is held.

Which process is meant, also in a message to others, says ``ProcessId``.
"""

from __future__ import annotations

import contextlib
import os
import signal


class ProcessHandle:
    """``fd`` becomes readable when the process has ended; None where no descriptor for that could be had.

    A pidfd stays that process's own even when its number is given to another one.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.fd: int | None = None
        # This very process (an instance in a thread) is neither watched nor killed.
        self._ours = pid == os.getpid()
        if not self._ours:
            with contextlib.suppress(OSError):
                self.fd = os.pidfd_open(pid)

    def kill(self) -> None:
        """SIGKILL, which stopped processes obey, too."""
        if self._ours:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self.fd is not None:
                signal.pidfd_send_signal(self.fd, signal.SIGKILL)
            else:
                os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        if self.fd is not None:
            os.close(self.fd)
