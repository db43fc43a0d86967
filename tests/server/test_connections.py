"""Real sockets: clients that go away, servers that stop."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from fastapi import FastAPI

from aegaeon.server.http.address import AddressError, bind
from aegaeon.server.serve import serve
from tests.worlds.scripted import Script, ScriptedFrontend

TIMEOUT_S = 10.0
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


@asynccontextmanager
async def _posted(address: tuple[str, int], **fields: object) -> AsyncIterator[asyncio.StreamReader]:
    """A chat request on a socket of its own, which is closed at the end."""
    reader, writer = await asyncio.open_connection(*address)
    body = json.dumps({**CHAT, **fields}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await writer.drain()
    yield reader
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("texts", [(), ("Hel", "lo")])
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_away_cancels_its_generations(
    address: tuple[str, int],
    frontend: ScriptedFrontend,
    caplog: pytest.LogCaptureFixture,
    texts: tuple[str, ...],
    n: int,
    stream: bool,
) -> None:
    frontend.script = Script(texts=texts, hangs=True)
    caplog.set_level(logging.DEBUG, "aegaeon")
    async with _posted(address, stream=stream, n=n) as reader:
        async with asyncio.timeout(TIMEOUT_S):
            if stream and texts:
                await reader.readuntil(b"lo")
            while len(frontend.generations) < n:
                frontend.submitted.clear()
                await frontend.submitted.wait()
    async with asyncio.timeout(TIMEOUT_S):
        for generation in frontend.generations:
            await generation.cancelled.wait()
    async with httpx.AsyncClient(base_url="http://{}:{}".format(*address)) as client:
        metrics = (await client.get("/metrics")).text
    assert f'aegaeon_generations_total{{model="tiny",outcome="cancelled"}} {n}.0' in metrics
    assert 'aegaeon_generations_running{model="tiny"} 0.0' in metrics
    told = [record for record in caplog.records if record.name.startswith(("aegaeon", "uvicorn"))]
    assert [(record.levelno, record.exc_info) for record in told] == [(logging.DEBUG, None)]
    assert "the client has gone" in told[0].message


async def test_a_client_that_goes_away_disturbs_no_other(address: tuple[str, int], frontend: ScriptedFrontend) -> None:
    frontend.script = Script(hangs=True)
    async with _posted(address, stream=True) as reader, asyncio.timeout(TIMEOUT_S):
        await reader.readuntil(b"lo")
    frontend.script = Script()
    async with httpx.AsyncClient(base_url="http://{}:{}".format(*address)) as client:
        answer = await client.post("/v1/chat/completions", json=CHAT)
    assert answer.json()["choices"][0]["message"]["content"] == "Hello!"


async def test_a_client_that_leaves_within_its_body_is_forgotten(
    address: tuple[str, int], app: FastAPI, caplog: pytest.LogCaptureFixture
) -> None:
    _, writer = await asyncio.open_connection(*address)
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    async with httpx.AsyncClient(base_url="http://{}:{}".format(*address)) as client, asyncio.timeout(TIMEOUT_S):
        while 'status="499"' not in (await client.get("/metrics")).text:
            await asyncio.sleep(0)
    assert not [record for record in caplog.records if record.levelno > logging.DEBUG]


async def test_tokens_are_sent_as_they_come(address: tuple[str, int], frontend: ScriptedFrontend) -> None:
    frontend.script = Script(hangs=True)
    async with _posted(address, stream=True) as reader, asyncio.timeout(TIMEOUT_S):
        for text in (b'"Hel"', b'"lo"', b'"!"'):
            await reader.readuntil(text)


class _Running:
    """A server that a test stops itself."""

    def __init__(self, app: FastAPI, grace_s: float) -> None:
        sock = bind("127.0.0.1", 0)
        self.address = sock.getsockname()
        self.url = "http://{}:{}".format(*self.address)
        self.started = asyncio.Event()
        self.task = asyncio.create_task(serve(app, sock, on_started=self.started.set, grace_s=grace_s))

    async def stopped(self) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            with pytest.raises(asyncio.CancelledError):
                await self.task


async def test_stopping_lets_running_requests_finish(app: FastAPI, frontend: ScriptedFrontend) -> None:
    frontend.script = Script(held=asyncio.Event())
    server = _Running(app, grace_s=TIMEOUT_S)
    await server.started.wait()
    async with httpx.AsyncClient(base_url=server.url) as client:
        asked = asyncio.create_task(client.post("/v1/chat/completions", json=CHAT))
        await frontend.submitted.wait()
        server.task.cancel()
        while _accepts(server.address):
            await asyncio.sleep(0.01)
        frontend.script.held.set()
        assert (await asked).json()["choices"][0]["message"]["content"] == "Hello!"
    await server.stopped()


def _accepts(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=1).close()
    except ConnectionRefusedError:
        return False
    return True


async def test_stopping_cuts_off_what_takes_too_long(
    app: FastAPI, frontend: ScriptedFrontend, caplog: pytest.LogCaptureFixture
) -> None:
    frontend.script = Script(hangs=True)
    server = _Running(app, grace_s=0.0)
    await server.started.wait()
    async with httpx.AsyncClient(base_url=server.url) as client:
        whole = asyncio.create_task(client.post("/v1/chat/completions", json=CHAT))
        streamed = asyncio.create_task(client.post("/v1/chat/completions", json={**CHAT, "stream": True}))
        while len(frontend.generations) < 2:
            frontend.submitted.clear()
            await frontend.submitted.wait()
        for _ in range(10):  # the script's tokens, one turn of the loop each
            await asyncio.sleep(0)
        server.task.cancel()
        await server.stopped()
        assert (await whole).status_code == 503
        assert (await whole).json()["error"]["code"] == "shutting_down"
        assert "shutting_down" in (await streamed).text
    assert all(generation.cancelled.is_set() for generation in frontend.generations)
    assert not [record for record in caplog.records if record.exc_info]


async def test_an_address_in_use_is_a_clear_error() -> None:
    with bind("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        with pytest.raises(AddressError, match=f"port {port}: .*in use.*port 0"):
            bind("127.0.0.1", port)


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 70_000), ("no.such.host.invalid", 0), ("192.0.2.1", 0)])
async def test_an_impossible_address_is_a_clear_error(host: str, port: int) -> None:
    with pytest.raises(AddressError, match=f"Cannot listen on {host}"):
        bind(host, port)


def test_tokens_do_not_wait_for_acknowledgements() -> None:
    """Connections inherit it; without it the first token comes 40 ms late."""
    with bind("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        connection, _ = listening.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
