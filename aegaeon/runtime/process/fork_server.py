"""A process that has imported everything, and forks: what it starts has everything at once, and shares its memory.

Importing torch and Transformers takes 10 s of a core and 400 MB; forking who has imported them takes 15 ms and hardly
any memory. Forking is safe as long as the server has one thread and has not touched a GPU, so it does nothing but
import and fork.

::

    driver                            fork server                         process
      |  a call (paper), a line ------->|                                    |
      |                                 | fork ----------------------------->|
      |<------ its process id (line) ---|                                    | does what the paper says,
      |                                 |                                    | writes the answer on it, ends
      |<------- how it ended (line) ----|<---------------------------------- |
"""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib
import logging
import os
import pickle
import selectors
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from aegaeon.runtime.process.forked_process import LINE_BYTES, Call, ForkedProcess, answer, write_call
from aegaeon.runtime.process.process import set_name
from aegaeon.runtime.process.process_log import LogPlace, begin_process_log

logger = logging.getLogger(__name__)

_CODE = "import sys; sys.path[:] = {path!r}; from aegaeon.runtime.process.fork_server import serve; serve({control})"
# numpy's BLAS starts its threads as it is imported: it is to have none here.
_BLAS_THREADS = "OPENBLAS_NUM_THREADS"
# is_available() asks the management library, not the driver, which a process that forks must not wake.
_QUIET_CUDA = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}

# Somebody killed it; or, after that, there was no other one to be had.
_NOBODY_THERE = (errno.EPIPE, errno.ECONNRESET, errno.EBADF)
_MOST_BYTES = 1 << 16  # of what a server is told as it begins


class ForkServer:
    """The driver's side; any thread may use it. The server ends with this process, and all that it has forked, too.

    ``begun(pid)`` is told whenever there is a server: another one, where somebody has killed the one before.
    ``modules``: what it imports.
    """

    def __init__(self, name: str, logs: LogPlace, modules: Sequence[str], begun: Callable[[int], None]) -> None:
        self._name = name
        self._logs = logs
        self._modules = tuple(modules)
        self._begun = begun
        self._lock = threading.Lock()
        self._control: socket.socket
        self._process: subprocess.Popen[bytes]
        self._begin()

    def _begin(self) -> None:
        ours, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with control:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _CODE.format(path=sys.path, control=control.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[control.fileno()],
                env=os.environ | _QUIET_CUDA,
                start_new_session=True,
            )
        self._control = ours
        self._begun(self._process.pid)
        self._control.send(pickle.dumps((self._name, self._logs, self._modules)))

    def start(self, call: Call) -> ForkedProcess:
        """Have something called in a process of its own. Returns at once, also while the server still imports.

        Raises ``OSError`` where there is no process or descriptor to be had.
        """
        paper = write_call(call)
        line, servers_end = os.pipe()
        try:
            with self._lock:
                self._ask([paper, servers_end])
                server_pid = self._process.pid
        except BaseException:
            os.close(paper)
            os.close(line)
            raise
        finally:
            os.close(servers_end)
        return ForkedProcess(call.name, paper, line, server_pid)

    def _ask(self, descriptors: Sequence[int]) -> None:
        try:
            socket.send_fds(self._control, [b"f"], descriptors)
        except OSError as error:
            if error.errno not in _NOBODY_THERE:
                raise
            self._end()
            self._begin()
            socket.send_fds(self._control, [b"f"], descriptors)

    def _end(self) -> None:
        self._control.close()
        self._process.kill()  # it may be stopped
        self._process.wait()

    def close(self) -> None:
        """End it, and what it has forked and is there still."""
        with self._lock:
            self._end()


def serve(control_fd: int) -> None:
    """The server: imports what it is told to, and forks until its driver has ended, or wants no more."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    control = socket.socket(fileno=control_fd)
    name, logs, modules = pickle.loads(control.recv(_MOST_BYTES))
    set_name(name)
    begin_process_log(name, logs)
    try:
        _import(modules)
        _Loop(control).run()
    except BaseException:
        logger.exception("nothing can be forked any more")
        os._exit(1)
    os._exit(0)  # those that it has forked, and who are there still, end with it


def _import(modules: Sequence[str]) -> None:
    before = os.environ.get(_BLAS_THREADS)
    os.environ[_BLAS_THREADS] = "1"
    for module in ("numpy", *modules):
        importlib.import_module(module)
    del os.environ[_BLAS_THREADS]
    if before is not None:
        os.environ[_BLAS_THREADS] = before
    if len(list(Path("/proc/self/task").iterdir())) > 1:
        logger.warning("something that was imported has threads, which the processes that are forked will not have")
    gc.collect()
    gc.freeze()  # a collection would write to all objects, and memory that is written to is not shared


@dataclass(frozen=True, slots=True)
class _Child:
    """``line``: where its driver hears of it; ``fd``: readable when it has ended."""

    pid: int
    fd: int
    line: int


class _Loop:
    """Forks, and tells how what it has forked ends."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ)

    def run(self) -> None:
        """Returns when nobody asks any more."""
        while True:
            for key, _ in self._selector.select():
                if key.data is not None:
                    self._tell_end(key.data)
                elif not self._fork():
                    return

    def _fork(self) -> bool:
        """What the driver asks for; False where it has gone."""
        said, descriptors, _, _ = socket.recv_fds(self._control, 1, 2)
        if len(descriptors) < 2:  # where there was no room for them, whoever waits at the line hears that it is closed
            for descriptor in descriptors:
                os.close(descriptor)
            return bool(said)
        paper, line = descriptors
        server_pid = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            pid = -(error.errno or errno.EAGAIN)
        if pid == 0:
            self._let_go(line)
            answer(paper, server_pid)
        os.close(paper)
        self._tell(line, pid)
        if pid > 0:
            child = _Child(pid, os.pidfd_open(pid), line)
            self._selector.register(child.fd, selectors.EVENT_READ, child)
        else:
            os.close(line)
        return True

    def _let_go(self, line: int) -> None:
        """Whoever was forked has nothing to do with the others."""
        children = [key.data for key in self._selector.get_map().values() if key.data is not None]
        for fd in (line, self._control.fileno(), *(fd for child in children for fd in (child.fd, child.line))):
            os.close(fd)
        self._selector.close()

    def _tell_end(self, child: _Child) -> None:
        self._selector.unregister(child.fd)
        _, status = os.waitpid(child.pid, 0)
        self._tell(child.line, status)
        os.close(child.fd)
        os.close(child.line)

    @staticmethod
    def _tell(line: int, said: int) -> None:
        with contextlib.suppress(BrokenPipeError):  # nobody waits for it any more
            os.write(line, said.to_bytes(LINE_BYTES, "little", signed=True))
