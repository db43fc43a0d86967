"""The application over a scripted frontend, in process and behind a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI

from aegaeon.server.app import ServerOptions, create_app
from aegaeon.server.http.address import bind
from aegaeon.server.http.limits import RequestLimits
from aegaeon.server.serve import serve
from tests.worlds.scripted import NOW_S, ScriptedFrontend

LIMITS = RequestLimits(max_body_bytes=100_000, max_choices=20)


@pytest.fixture
async def frontend() -> ScriptedFrontend:
    return ScriptedFrontend()


@pytest.fixture
def app(frontend: ScriptedFrontend) -> FastAPI:
    return create_app(frontend, ServerOptions(limits=LIMITS, now_s=lambda: NOW_S))


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
        yield client


@pytest.fixture
async def address(app: FastAPI) -> AsyncIterator[tuple[str, int]]:
    """Where a real server listens."""
    started = asyncio.Event()
    sock = bind("127.0.0.1", 0)
    serving = asyncio.create_task(serve(app, sock, on_started=started.set, grace_s=0.0))
    host, port = sock.getsockname()
    await started.wait()
    yield host, port
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
