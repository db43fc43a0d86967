"""A pool of our own: ``aegaeon serve`` as a user starts it, in processes of its own, gone without trace afterwards."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from aegaeon.runtime.process.process import adopt_orphans
from benchmark.command.errors import BenchmarkError
from benchmark.command.interrupt import deaf_to_interrupts
from benchmark.e2e.process_tree import ProcessTree

READY_LINE = re.compile(r"^ready (https?://\S+)$", re.MULTILINE)
POLL_S = 0.05


class PoolError(BenchmarkError):
    """The pool did not start; the message has what it said last."""


class PoolProcess:
    """``aegaeon serve`` with these arguments, at any port or this one; entered when the pool is ready.

    What the pool prints goes to ``log``. Leaving asks it to stop and waits ``grace_s``; then every process that
    descends from it, wherever it put itself, is asked too, and killed after ``kill_s``.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        log: Path,
        *,
        port: int = 0,
        command: Sequence[str] | None = None,
        ready_s: float = 300.0,
        grace_s: float = 20.0,
        kill_s: float = 5.0,
    ) -> None:
        self._command = [*(command or aegaeon_command()), "serve", *arguments, "--port", str(port)]
        self._log = log
        self._ready_s = ready_s
        self._grace_s = grace_s
        self._kill_s = kill_s
        self._before: set[int] = set()
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def __enter__(self) -> Self:
        adopt_orphans(True)
        self._before = ProcessTree.now().children
        try:
            self._start()
            self.url = self._wait_ready()
        except BaseException:  # Ctrl-C too: nothing may stay behind
            self._stop()
            raise
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._stop()

    @property
    def pid(self) -> int:
        """The pool's own process, once it was started."""
        assert self._process is not None, "the pool was not started"
        return self._process.pid

    def wait(self, timeout_s: float) -> int:
        """The exit code of a pool that was asked to end. Raises ``subprocess.TimeoutExpired``."""
        assert self._process is not None, "the pool was not started"
        return self._process.wait(timeout_s)

    @property
    def alive(self) -> bool:
        """Whether the pool's own process runs."""
        return self._process is not None and self._process.poll() is None

    def _start(self) -> None:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("wb") as log:
            # A session of its own: Ctrl-C at the terminal reaches us alone, and we stop the pool in good order.
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _wait_ready(self) -> str:
        deadline_s = time.monotonic() + self._ready_s
        while time.monotonic() < deadline_s:
            ended = not self.alive
            found = READY_LINE.search(self._said())
            if found:
                return found[1]
            if ended:
                raise PoolError(f"the pool ended before it was ready:\n{self._last_words()}")
            time.sleep(POLL_S)
        raise PoolError(f"the pool was not ready after {self._ready_s:.0f} s:\n{self._last_words()}")

    def _said(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def _last_words(self) -> str:
        return "\n".join(self._said().splitlines()[-20:])

    def _stop(self) -> None:
        with deaf_to_interrupts():
            if self._process and self.alive:
                self._process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(self._grace_s)
            self._end_leftovers(signal.SIGTERM, within_s=self._kill_s)
            self._end_leftovers(signal.SIGKILL, within_s=self._kill_s)
            adopt_orphans(False)

    def _end_leftovers(self, signal_number: signal.Signals, within_s: float) -> None:
        """Signal every process that still descends from the pool, until none is left."""
        deadline_s = time.monotonic() + within_s
        signalled: set[int] = set()
        while (left := self._leftovers()) and time.monotonic() < deadline_s:
            for pid in left - signalled:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal_number)
            signalled |= left
            time.sleep(POLL_S)

    def _leftovers(self) -> set[int]:
        """Descendants that came with the pool; orphans among them have become children of this process."""
        pool: set[int] = set()
        if self._process:
            self._process.poll()
            pool = {self._process.pid}
        tree = ProcessTree.now()
        tree.reap_adopted(self._before | pool)
        return tree.descendants((tree.children - self._before) | pool)


def aegaeon_command() -> list[str]:
    """The installed command beside this Python, else the same through this Python."""
    script = shutil.which("aegaeon", path=str(Path(sys.executable).parent))
    return [script] if script else [sys.executable, "-m", "aegaeon"]
