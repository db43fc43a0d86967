"""A process that a fork server has forked, to call one function: both sides of it."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import pickle
import select
import signal
import sys
import time
from dataclasses import dataclass
from typing import Any, NoReturn

from aegaeon.runtime.process.process import die_with_parent, processor_ticks, set_name
from aegaeon.runtime.process.process_log import LogPlace, begin_process_log

logger = logging.getLogger(__name__)

LINE_BYTES = 8
"""What a fork server writes at once: the process's id, or minus the error number where there is none; then how it
ended, as ``os.waitpid`` says it."""

_LOOK_S = 5.0
# Importing takes processor time, and forking hardly any time at all.
_SERVER_SILENCE_S = 30.0


class ProcessDiedError(Exception):
    """The process ended before its function returned."""


@dataclass(frozen=True, slots=True)
class Call:
    """``function`` of ``module``, to be called in a process ``name`` that logs to ``logs``; arguments and result are
    pickled. Whoever wants it called need not be able to import the module."""

    name: str
    logs: LogPlace
    module: str
    function: str
    arguments: tuple[Any, ...] = ()


class ForkedProcess:
    """One thread may use it, and must ``close`` it.

    ``paper``: the memory that the call is written to, and its answer later. ``line``: what the fork server says of the
    process. ``server_pid``: whose work it is until there is a process. All methods raise ``ProcessDiedError``.
    """

    def __init__(self, name: str, paper: int, line: int, server_pid: int) -> None:
        self._name = name
        self._paper = paper
        self._line = line
        self._server_pid = server_pid
        self._pid: int | None = None
        self._runs = True

    def pid(self) -> int:
        """Blocks until there is a process. The fork server is killed where it is stuck."""
        if self._pid is None:
            self._await_word(self._server_pid, _SERVER_SILENCE_S)
            pid = self._read()
            if pid < 0:
                raise ProcessDiedError(f"the process {self._name} cannot be started: {os.strerror(-pid)}")
            self._pid = pid
        return self._pid

    def result(self, silence_s: float | None = None) -> Any:
        """What the function returns, or raises, when the process has ended.

        It is killed where it has had no processor time for ``silence_s`` seconds: what is not stuck has some.
        """
        pid = self.pid()
        if silence_s is not None:
            self._await_word(pid, silence_s)
        status = self._read()
        self._runs = False
        self._check(os.waitstatus_to_exitcode(status))
        answer = pickle.loads(_content(self._paper))
        if isinstance(answer, _Raised):
            raise answer.error()
        return answer

    def kill(self) -> None:
        """End it, where it may run still."""
        with contextlib.suppress(ProcessLookupError):
            if self._runs and self._pid is not None:
                os.kill(self._pid, signal.SIGKILL)

    def close(self) -> None:
        """Nobody wants to hear of it any more; it is killed, where it may run still."""
        self.kill()
        os.close(self._line)
        os.close(self._paper)

    def _read(self) -> int:
        said = os.read(self._line, LINE_BYTES)
        if not said:
            raise ProcessDiedError(f"the process {self._name} ended with the one that it was forked from")
        return int.from_bytes(said, "little", signed=True)

    def _check(self, code: int) -> None:
        if code:
            how = f"was killed by signal {-code}" if code < 0 else "has failed"
            raise ProcessDiedError(f"the process {self._name} {how}")
        if not os.fstat(self._paper).st_size:
            raise ProcessDiedError(f"the process {self._name} ended without an answer")

    def _await_word(self, worker: int, silence_s: float) -> None:
        """Blocks until the fork server says something; ``worker``, whom it depends on, is killed where it is stuck."""
        poll = select.poll()
        poll.register(self._line, select.POLLIN)
        spent, worked_s = -1, time.monotonic()
        while not poll.poll(_LOOK_S * 1000):
            now_s, before = time.monotonic(), spent
            spent = _ticks(worker)
            if spent != before:
                worked_s = now_s
            elif now_s - worked_s > silence_s:
                logger.warning("process %d has done nothing for %.0f s: it is killed", worker, now_s - worked_s)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGKILL)
                return


class _KnownOnly(pickle.Unpickler):
    """Imports nothing: an error may be of a module that takes seconds to import."""

    def find_class(self, module: str, name: str) -> Any:
        if module not in sys.modules:
            raise pickle.UnpicklingError(f"{module} is not imported here")
        return super().find_class(module, name)


@dataclass(frozen=True, slots=True)
class _Raised:
    """An error in another process: its words, and itself, where it can be pickled."""

    words: str
    pickled: bytes = b""

    @classmethod
    def of(cls, error: Exception) -> _Raised:
        words = f"{type(error).__name__}: {error}"
        try:
            return cls(words, pickle.dumps(error))
        except Exception:  # noqa: BLE001 -- its class is anybody's
            return cls(words)

    def error(self) -> Exception:
        """Itself, where that can be made of what is known here, or else its words."""
        try:
            error: Exception = _KnownOnly(io.BytesIO(self.pickled)).load()
        except Exception:  # noqa: BLE001 -- its class is anybody's
            return ProcessDiedError(self.words)
        return error


def write_call(call: Call) -> int:
    """The paper of a call: a descriptor of memory."""
    paper = os.memfd_create(call.name, os.MFD_CLOEXEC)
    try:
        _write(paper, call)
    except BaseException:
        os.close(paper)
        raise
    return paper


def answer(paper: int, server_pid: int) -> NoReturn:
    """The forked process: does what the paper says, writes the answer in place of it, and ends."""
    code = 1
    try:
        die_with_parent(server_pid)
        call: Call = pickle.loads(_content(paper))
        os.truncate(paper, 0)
        set_name(call.name)
        begin_process_log(call.name, call.logs)
        _write(paper, _outcome(call))
        code = 0
    except BaseException:
        logger.exception("this process fails")
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # nothing can be said any more
                stream.flush()
        os._exit(code)


def _outcome(call: Call) -> Any:
    """What the function returns, or what it raises."""
    try:
        return getattr(importlib.import_module(call.module), call.function)(*call.arguments)
    except Exception as error:  # noqa: BLE001 -- it is raised again, by whoever waits
        return _Raised.of(error)
    except SystemExit as error:
        return _Raised(f"the process {call.name} ended itself ({error.code})")


def _content(paper: int) -> bytes:
    return os.pread(paper, os.fstat(paper).st_size, 0)


def _write(paper: int, content: object) -> None:
    data = pickle.dumps(content)
    written = 0
    while written < len(data):
        written += os.pwrite(paper, data[written:], written)


def _ticks(pid: int) -> int:
    """Processor time that a process has had; none where it has ended, which the fork server is about to say."""
    try:
        return processor_ticks(pid)
    except OSError:
        return 0
