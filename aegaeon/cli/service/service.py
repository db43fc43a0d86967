"""A whole service: a supervisor that holds the listening socket, and two processes that it keeps running.

The *pool* (Ray, drivers, instances) and the *server* (HTTP, frontend) are replaced when they die: while there is no
server connections wait in the socket's queue, while there is no pool requests wait in the server. Nothing heavy is
imported here, so that this process is small and hardly anything in it can fail.

However this process ends, the kernel ends the two with it, and Ray's processes end with the pool's; what is left of a
pool that died alone becomes a child of this process (``adopt_orphans``) and is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import replace

from aegaeon.cli.service.channel import BeginPool, BeginServer, ChildFailed, EndKind, ModelsReady, NodeUp, Said, Stop
from aegaeon.cli.service.child import Child
from aegaeon.cli.terminal.failure import ReportedBugError
from aegaeon.core.config import PoolConfig
from aegaeon.core.service import (
    ListeningOn,
    ProcessDied,
    Ready,
    ServiceDiedError,
    ServiceError,
    ServiceReport,
    Stopping,
)
from aegaeon.runtime.process.backoff import PROCESS_LIMIT, PROCESS_PAUSES, Backoff, ran_well
from aegaeon.runtime.process.process import adopt_orphans, children, kill_children
from aegaeon.runtime.process.process_log import LogPlace
from aegaeon.runtime.process.run_folder import RunFolder
from aegaeon.server.http.address import AddressError, bind

logger = logging.getLogger(__name__)

Report = Callable[[ServiceReport], None]

# After its grace the server cuts requests off and tells their clients; a pool shuts its instances down.
_CUT_OFF_S = 10.0
_POOL_STOP_S = 20.0
_KILL_S = 10.0


def listen(config: PoolConfig) -> socket.socket:
    """The socket that clients connect to. Raises ``ServiceError``."""
    try:
        return bind(config.host, config.port)
    except AddressError as error:
        raise ServiceError(str(error)) from error


def run_service(config: PoolConfig, sock: socket.socket, report: Report, folder: RunFolder, logs: LogPlace) -> None:
    """Serve until SIGINT or SIGTERM, which let running requests finish first; a second one does not.

    ``config`` is settled: no size is left to guess. ``logs``: of the pool's processes. Raises ``ServiceError`` when the
    service cannot start or go on, and ``KeyboardInterrupt`` when it was cut short.
    """
    report(ListeningOn(_url(sock)))
    adopt_orphans()
    others = children()
    begin = BeginPool(config, folder.path, logs)
    try:
        in_time = asyncio.run(_Supervisor(begin, report, sock, others).run())
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # what is left to do takes a moment, and is what they ask for
        kill_children(others, _KILL_S)
    if not in_time:
        raise KeyboardInterrupt


def _url(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _unborn(error: OSError) -> str:
    """The end of a process that the machine has no room for now: the other one goes on."""
    return f"it could not be started: {error}"


class _Supervisor:
    """Keeps the two processes running until it is told to stop. ``others``: children that are none of its business."""

    def __init__(self, begin: BeginPool, report: Report, sock: socket.socket, others: set[int]) -> None:
        self._begin = begin
        self._config = begin.config
        self._report = report
        self._socket = sock
        self._url = _url(sock)
        self._others = others
        self._pool: Child | None = None
        self._server: Child | None = None
        self._models: ModelsReady | None = None
        self._nodes: dict[str, NodeUp] = {}
        self._served = asyncio.Event()  # there are models to start a server with
        self._ready = False
        self._stop, self._at_once = asyncio.Event(), asyncio.Event()
        self._sweeping = asyncio.Lock()  # what a dead pool left is being killed: nobody is born meanwhile

    async def run(self) -> bool:
        """Whether what was under way when it was told to stop could end; raises as ``run_service`` does."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._signalled)
        loop.add_signal_handler(signal.SIGCHLD, self._bury)
        keepers = [asyncio.create_task(self._keep_pool()), asyncio.create_task(self._keep_server())]
        stop = asyncio.create_task(self._stop.wait())
        try:
            done, _ = await asyncio.wait([*keepers, stop], return_when=asyncio.FIRST_COMPLETED)
            self._report(Stopping())
            for keeper in done - {stop}:
                keeper.result()
            return not self._ready or await self._wind_up()
        finally:
            for child in (self._server, self._pool):
                if child is not None:
                    child.kill()
            for task in (*keepers, stop):
                task.cancel()
            await asyncio.gather(*keepers, stop, return_exceptions=True)

    def _signalled(self) -> None:
        (self._at_once if self._stop.is_set() else self._stop).set()

    def _bury(self) -> None:
        """Children that were others' have nobody else to wait for them."""
        for pid in children() - self._known():
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)

    # --- the two processes ------------------------------------------------------------------------------------------

    async def _keep_pool(self) -> None:
        backoff = Backoff(PROCESS_PAUSES, PROCESS_LIMIT)
        while True:
            try:
                self._pool = Child("pool", "aegaeon.cli.service.pool_process")
            except OSError as error:
                how = _unborn(error)
            else:
                self._pool.send(replace(self._begin, models=None if self._models is None else self._models.models))
                how = await self._pool.follow(self._take)
            pool, self._pool = self._pool, None
            self._nodes.clear()
            await self._after_death("pool", pool, how, backoff)

    async def _keep_server(self) -> None:
        backoff = Backoff(PROCESS_PAUSES, PROCESS_LIMIT)
        while True:
            await self._served.wait()
            assert self._models is not None
            async with self._sweeping:
                await self._unless_stopping()
                try:
                    self._server = Child("server", "aegaeon.cli.service.server_process", (self._socket.fileno(),))
                except OSError as error:
                    how = _unborn(error)
            if self._server is not None:
                for message in (BeginServer(self._config, self._url), self._models, *self._nodes.values()):
                    self._server.send(message)
                how = await self._server.follow(self._take)
            server, self._server = self._server, None
            await self._after_death("server", server, how, backoff)

    def _take(self, message: object) -> None:
        """What the pool or the server says."""
        match message:
            case Said():
                self._report(message.report)
                if isinstance(message.report, Ready):
                    self._ready = True
                    if self._server is not None:
                        self._server.note_up()
            case ModelsReady():
                self._models = message
                self._served.set()
            case NodeUp():
                self._nodes[message.node_id] = message
                if self._pool is not None:
                    self._pool.note_up()
                if self._server is not None:
                    self._server.send(message)
            case _:
                raise TypeError(f"a supervisor does not take {message!r}")

    async def _after_death(self, name: str, child: Child | None, how: str, backoff: Backoff) -> None:
        """Wait as long as is right before another is started; raises where that makes no sense. ``child``: None where
        there was none."""
        await self._unless_stopping()
        self._end_if_hopeless(child.failure if child is not None else None)
        pause_s = backoff.pause_s(child is not None and ran_well(child.up_s, time.monotonic()))
        if backoff.hopeless:
            raise ServiceDiedError(f"the {name} process died {backoff.ends} times in a row, last: {how}; see the log")
        self._report(ProcessDied(name, how, pause_s))
        if name == "pool":
            async with self._sweeping:
                await asyncio.to_thread(kill_children, self._known(), _KILL_S)
        await asyncio.sleep(pause_s)
        await self._unless_stopping()

    def _end_if_hopeless(self, failure: ChildFailed | None) -> None:
        """Ends the service where a process never worked; what did work once may again."""
        match failure:
            case ChildFailed(message, EndKind.DEATHS):
                raise ServiceDiedError(f"{message}; see the log")
            case ChildFailed(message, EndKind.MISTAKE) if not self._ready:
                raise ServiceError(message)
            case ChildFailed(message, EndKind.BUG) if not self._ready:
                raise ReportedBugError(message)

    async def _unless_stopping(self) -> None:
        if self._stop.is_set():
            await asyncio.Event().wait()  # whoever stops the service ends this

    def _known(self) -> set[int]:
        return self._others | {child.pid for child in (self._pool, self._server) if child is not None}

    # --- the end ----------------------------------------------------------------------------------------------------

    async def _wind_up(self) -> bool:
        """Let running requests finish, then the pool; False where a second signal wants it all to end at once."""
        self._socket.close()  # else connections would wait here for a server that never comes
        for child, limit_s in ((self._server, self._config.grace_s + _CUT_OFF_S), (self._pool, _POOL_STOP_S)):
            if child is not None:
                child.send(Stop())
                waits = [asyncio.create_task(self._at_once.wait()), asyncio.create_task(child.ended())]
                await asyncio.wait(waits, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
                for task in waits:
                    task.cancel()
            if self._at_once.is_set():
                return False
        return True
