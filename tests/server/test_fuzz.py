"""Whatever the body is: an answer or an error object, never a failure of the server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st
from uvicorn.server import ServerState

from aegaeon.server.app import ServerOptions, create_app
from aegaeon.server.http.limits import ConnectionLimits
from aegaeon.server.http.protocol import HttpProtocol
from aegaeon.server.openai.schema import ChatRequest, CompletionRequest
from aegaeon.server.openai.unsupported import UNSUPPORTED
from tests.worlds.scripted import ScriptedFrontend

FIELDS = sorted({*ChatRequest.model_fields, *CompletionRequest.model_fields, *UNSUPPORTED})
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
PARTS = st.fixed_dictionaries({}, optional={"type": st.sampled_from(["text", "image_url"]) | JSON, "text": JSON})
MESSAGES = st.fixed_dictionaries(
    {}, optional={"role": st.sampled_from(["user", "assistant"]) | JSON, "content": JSON | st.lists(PARTS, max_size=3)}
)
PLAUSIBLE: dict[str, st.SearchStrategy[Any]] = {
    "model": st.sampled_from(["tiny", "none"]),
    "messages": st.lists(MESSAGES, max_size=3),
    "prompt": st.text() | st.lists(st.integers(-1, 9)) | st.lists(st.text()) | st.lists(st.lists(st.integers())),
    "n": st.integers(-1, 20),
    "stop": st.text() | st.lists(st.text()),
    "stream": st.booleans(),
}
BODIES = st.fixed_dictionaries(
    {"model": PLAUSIBLE["model"]},
    optional={name: PLAUSIBLE.get(name, st.nothing()) | st.floats(-3, 3) | JSON for name in FIELDS if name != "model"},
)


async def _post(path: str, body: bytes) -> httpx.Response:
    app = create_app(ScriptedFrontend(), ServerOptions())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
        return await client.post(path, content=body)


def _check(path: str, body: bytes) -> None:
    answer = asyncio.run(_post(path, body))
    assert answer.headers["x-request-id"]
    if answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream"):
        assert answer.text.endswith("data: [DONE]\n\n")
    elif answer.status_code == 200:
        assert answer.json()["choices"]
    else:
        assert answer.status_code in (400, 404)
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


paths = st.sampled_from(["/v1/chat/completions", "/v1/completions"])


@given(path=paths, body=BODIES)
@settings(deadline=None)
def test_any_fields(path: str, body: dict[str, Any]) -> None:
    _check(path, json.dumps(body).encode())


@given(path=paths, value=JSON)
@settings(deadline=None)
def test_any_json(path: str, value: Any) -> None:
    _check(path, json.dumps(value).encode())


def _around(text: str) -> bytes:
    return b'{"model": "tiny", "prompt": "' + text.encode() + b'"}'


@given(path=paths, body=st.binary() | st.text().map(_around))
@settings(deadline=None)
def test_any_bytes(path: str, body: bytes) -> None:
    _check(path, body)


@contextlib.contextmanager
def caught_logs() -> Iterator[list[logging.LogRecord]]:
    """All that is logged meanwhile (pytest's own fixture is not made anew for every example)."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    try:
        yield records
    finally:
        logging.getLogger().removeHandler(handler)


GOOD = b'POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 32\r\n\r\n{"model": "tiny", "prompt": "x"}'
HEADS = st.sampled_from(
    [
        b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /health HTTP/1.0\r\n\r\n",
        b"HEAD /v1/models HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: upgrade\r\nContent-Length: 5\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 9999999999\r\n\r\n",
        b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
        GOOD,
    ]
)
PIECES = st.lists(
    HEADS | st.sampled_from([b"5\r\nhello\r\n", b"0\r\n\r\n", b"\r\n", b"{}"]) | st.binary(max_size=40), max_size=6
)


async def _troubles(pieces: list[bytes]) -> list[dict[str, Any]]:
    """What goes wrong in the loop where a client sends these bytes, and the end of its side."""
    loop, troubles = asyncio.get_running_loop(), list[dict[str, Any]]()
    loop.set_exception_handler(lambda _, context: troubles.append(context))
    config = uvicorn.Config(create_app(ScriptedFrontend()), log_config=None, lifespan="off", ws="none")
    near, far = socket.socketpair()
    made = HttpProtocol(
        ConnectionLimits(max_header_bytes=4096), config=config, server_state=ServerState(), app_state={}
    )
    await loop.connect_accepted_socket(lambda: made, far)
    reader, writer = await asyncio.open_connection(sock=near)
    for piece in pieces:
        writer.write(piece)
        await asyncio.sleep(0)
    with contextlib.suppress(OSError):  # as who goes on sending after the end of a connection deserves
        writer.write_eof()
        await reader.read()
    writer.close()
    while made.tasks:
        await asyncio.sleep(0)
    return troubles


@given(pieces=PIECES)
@settings(deadline=None)
def test_any_bytes_on_a_connection(pieces: list[bytes]) -> None:
    with caught_logs() as records:
        assert not asyncio.run(_troubles(pieces))
    assert not [record for record in records if record.levelno > logging.INFO]
