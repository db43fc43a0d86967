"""Runs the application on a socket until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator

import uvicorn
from fastapi import FastAPI

from aegaeon.accept import accept
from aegaeon.server.http.limits import ConnectionLimits
from aegaeon.server.http.protocol import HttpProtocol
from aegaeon.server.openai.running import RunningRequests

# What uvicorn waits after requests were cut off before it drops their connections.
CUT_OFF_S = 5.0


async def serve(
    app: FastAPI,
    sock: socket.socket,
    *,
    on_started: Callable[[], None],
    grace_s: float = 5.0,
    limits: ConnectionLimits | None = None,
) -> None:
    """Serve ``app`` on ``sock`` until this coroutine is cancelled; closes ``sock``.

    ``on_started`` is called once connections are accepted. On cancellation no more are; running requests may finish
    within ``grace_s``, then they are cut off (503, or an error event where the stream has begun). A second
    cancellation does not wait. Raises ``asyncio.CancelledError`` when all is done.
    """
    limits = limits or ConnectionLimits()
    server = _Server(_config(app, grace_s), app.state.running, on_started, grace_s, limits)
    running = asyncio.create_task(server.serve([sock]))
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        server.should_exit = True
        await running
        raise


def _config(app: FastAPI, grace_s: float) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        access_log=False,
        log_config=None,
        lifespan="off",
        ws="none",
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=int(grace_s + CUT_OFF_S),
    )


class _Server(uvicorn.Server):
    """Leaves signals to the caller, and cuts requests off itself, so that clients hear why."""

    def __init__(
        self,
        config: uvicorn.Config,
        running: RunningRequests,
        on_started: Callable[[], None],
        grace_s: float,
        limits: ConnectionLimits,
    ) -> None:
        super().__init__(config)
        self._running = running
        self._on_started = on_started
        self._grace_s = grace_s
        self._limits = limits
        self._accepting: list[asyncio.Task[None]] = []

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup([])
        self._accepting = [asyncio.create_task(accept(sock, self._connection)) for sock in sockets or ()]
        self._on_started()

    def _connection(self) -> HttpProtocol:
        state = self.server_state
        return HttpProtocol(self._limits, config=self.config, server_state=state, app_state=self.lifespan.state)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for task in self._accepting:
            task.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        cut_off = asyncio.get_running_loop().call_later(self._grace_s, self._running.abort)
        try:
            await super().shutdown(sockets)
        finally:
            cut_off.cancel()
