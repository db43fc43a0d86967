"""Clients that take more than they may, on real sockets: they are told, and nobody else notices."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import os
import resource
import shutil
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request

from aegaeon.server.app import ServerOptions, create_app
from aegaeon.server.http.address import bind
from aegaeon.server.http.body import LARGE_AT_ONCE, SMALL_BYTES, BodyReader
from aegaeon.server.http.limits import ConnectionLimits, RequestLimits
from aegaeon.server.serve import serve
from tests.worlds.scripted import Script, ScriptedFrontend

TIMEOUT_S = 20.0
SOON_S = 0.3  # for limits that must be reached
CHAT_PATH = "/v1/chat/completions"
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}

Address = tuple[str, int]


@asynccontextmanager
async def serving(
    frontend: ScriptedFrontend, connections: ConnectionLimits | None = None, **options: Any
) -> AsyncIterator[Address]:
    """Where a server with these limits listens."""
    started = asyncio.Event()
    sock = bind("127.0.0.1", 0)
    address = sock.getsockname()
    app = create_app(frontend, ServerOptions(**options))
    task = asyncio.create_task(serve(app, sock, on_started=started.set, grace_s=0.0, limits=connections))
    await started.wait()
    try:
        async with asyncio.timeout(TIMEOUT_S):
            yield address
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def request(body: bytes = b"", path: str = "/v1/chat/completions", *headers: str, version: str = "1.1") -> bytes:
    lines = [f"POST {path} HTTP/{version}", "Host: x", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def chat(**fields: object) -> bytes:
    return json.dumps({**CHAT, **fields}).encode()


async def exchanged(address: Address, *pieces: bytes) -> bytes:
    """All that comes back for these bytes, sent piece by piece, until the server ends the connection."""
    reader, writer = await asyncio.open_connection(*address)
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


def error(answer: bytes, status: int) -> dict[str, Any]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode()), answer[:200]
    assert b"\r\nx-request-id: " in head.lower()
    found = json.loads(body)["error"]
    assert set(found) == {"message", "type", "param", "code"}
    return dict(found)


async def health(address: Address) -> bytes:
    return await exchanged(address, b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")


# --- headers ---


@pytest.mark.parametrize(
    "head",
    [
        b"X-Long: " + b"x" * 20_000 + b"\r\n\r\n",
        b"".join(b"X-%d: y\r\n" % index for index in range(2000)) + b"\r\n",
        b"X-Endless: " + b"x" * 3_000_000,
        b"X-Fold: y\r\n" + b" y\r\n" * 5000,
        b"x" * 100_000,
    ],
    ids=["one", "many", "endless", "folded", "nameless"],
)
@pytest.mark.parametrize("piece_bytes", [1 << 20, 4096])
async def test_headers_have_a_limit(frontend: ScriptedFrontend, head: bytes, piece_bytes: int) -> None:
    async with serving(frontend, ConnectionLimits(max_header_bytes=16_384)) as address:
        sent = b"GET /health HTTP/1.1\r\nHost: x\r\n" + head
        answer = await _sent_while_open(address, sent, piece_bytes)
        assert b"200" not in answer[:16]
        if not head.startswith(b"X-Fold"):  # which the parser takes for what it is, no HTTP
            assert error(answer, 431)["code"] == "headers_too_large"
        assert (await health(address)).startswith(b"HTTP/1.1 200")


async def _sent_while_open(address: Address, data: bytes, piece_bytes: int) -> bytes:
    """As a client that reads while it sends, and stops when it is answered."""
    reader, writer = await asyncio.open_connection(*address)
    answer = asyncio.create_task(reader.read())
    for start in range(0, len(data), piece_bytes):
        if answer.done():
            break
        writer.write(data[start : start + piece_bytes])
        await writer.drain()
        await asyncio.sleep(0)
    writer.write_eof()
    try:
        return await answer
    finally:
        writer.close()


async def test_a_long_path_counts_as_header(frontend: ScriptedFrontend) -> None:
    async with serving(frontend, ConnectionLimits(max_header_bytes=8192)) as address:
        answer = await exchanged(address, b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        error(answer, 431)


async def test_trailers_and_chunk_extensions_have_a_limit(frontend: ScriptedFrontend) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with serving(frontend, ConnectionLimits(max_header_bytes=16_384)) as address:
        for endless in (b"1;x=" + b"y" * 2_000_000, b"1\r\n{\r\n0\r\nX-Trailer: " + b"y" * 2_000_000):
            error(await _sent_while_open(address, head + endless, 65536), 431)
        assert not frontend.requests


# --- time ---


@pytest.mark.parametrize(
    "start",
    [b"GET /hea", b"GET /health HTTP/1.1\r\nHost:", request(chat())[:-3], b"\r\n"],
    ids=["line", "headers", "body", "blank"],
)
async def test_half_a_request_is_given_up(
    frontend: ScriptedFrontend, start: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(frontend, ConnectionLimits(request_timeout_s=SOON_S)) as address:
        assert error(await exchanged(address, start), 408)["code"] == "request_timeout"
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


async def test_a_body_that_drips_is_given_up(frontend: ScriptedFrontend) -> None:
    async with serving(frontend, ConnectionLimits(request_timeout_s=SOON_S)) as address:
        reader, writer = await asyncio.open_connection(*address)
        answer = asyncio.create_task(reader.read())
        writer.write(request(b" " * 1_000_000)[:-999_999])
        while not answer.done():
            writer.write(b" ")
            await asyncio.sleep(0.01)
        error(answer.result(), 408)
        writer.close()


async def test_a_connection_on_which_nothing_comes_is_closed(frontend: ScriptedFrontend) -> None:
    limits = ConnectionLimits(request_timeout_s=SOON_S, keep_alive_s=SOON_S)
    async with serving(frontend, limits) as address:
        assert await exchanged(address) == b""
        answer = await exchanged(address, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200")


async def test_a_long_answer_is_not_a_late_request(frontend: ScriptedFrontend) -> None:
    frontend.script = Script(held=asyncio.Event())
    async with serving(frontend, ConnectionLimits(request_timeout_s=SOON_S)) as address:
        # The second request is there in part when the first is being answered.
        asked = asyncio.create_task(exchanged(address, request(chat(stream=True)), b"GET /hea"))
        await frontend.submitted.wait()
        await asyncio.sleep(2 * SOON_S)
        assert not asked.done()
        frontend.script.held.set()
        first, _, second = (await asked).partition(b"data: [DONE]")
        assert first.startswith(b"HTTP/1.1 200")
        assert b"HTTP/1.1 408" in second


async def test_a_client_that_reads_nothing_is_given_up(frontend: ScriptedFrontend) -> None:
    frontend.script = Script(texts=("x" * 1_000_000,) * 64)
    async with serving(frontend, ConnectionLimits(send_timeout_s=SOON_S)) as address:
        _, writer = await asyncio.open_connection(*address, limit=1024)
        writer.write(request(chat(stream=True)))
        await frontend.submitted.wait()
        await frontend.generations[0].cancelled.wait()
        writer.close()


# --- bodies ---


def _posted(address: Address, body: bytes, headers: dict[str, str]) -> tuple[int, dict[str, Any]]:
    """As urllib and many others do it: send everything, then read; ``Connection: close``."""
    connection = http.client.HTTPConnection(*address, timeout=TIMEOUT_S)
    connection.request("POST", "/v1/completions", body, {"Connection": "close", **headers})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Authorization": "Bearer key", "Content-Type": "application/json"}, 413),
        ({"Authorization": "Bearer key", "Content-Type": "text/plain"}, 415),
        ({"Authorization": "Bearer key", "Content-Encoding": "br"}, 415),
        ({}, 401),
    ],
)
async def test_an_answer_before_the_body_is_not_lost(
    frontend: ScriptedFrontend, headers: dict[str, str], status: int
) -> None:
    limits = RequestLimits(max_body_bytes=100_000)
    async with serving(frontend, api_keys=("key",), limits=limits) as address:
        body = b" " * 20_000_000
        assert (await asyncio.to_thread(_posted, address, body, headers))[0] == status
        assert not frontend.requests


async def test_who_asks_first_is_told_before_sending(frontend: ScriptedFrontend) -> None:
    async with serving(frontend, limits=RequestLimits(max_body_bytes=1000)) as address:
        head = request(b" " * 5000, "/v1/completions", "Expect: 100-continue", "Connection: close")[:-5000]
        assert error(await exchanged(address, head), 413)["code"] == "request_too_large"


async def _slow_clients(
    address: Address, number: int, body_bytes: int
) -> list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Clients that have sent their bodies but for the last byte, and do not go on."""
    clients = [await asyncio.open_connection(*address) for _ in range(number)]
    for _, writer in clients:
        writer.write(request(b" " * body_bytes)[:-1])
        await writer.drain()
    return clients


async def test_large_bodies_that_do_not_come_to_their_end_are_in_nobodys_way(frontend: ScriptedFrontend) -> None:
    async with serving(frontend) as address:
        slow = await _slow_clients(address, 2 * LARGE_AT_ONCE, SMALL_BYTES + 2)
        answer = await exchanged(address, request(chat(user="x" * 1_000_000), CHAT_PATH, "Connection: close"))
        assert answer.startswith(b"HTTP/1.1 200")
        for _, writer in slow:
            writer.close()


async def test_the_time_that_a_large_body_waits_for_room_is_not_its_clients(frontend: ScriptedFrontend) -> None:
    limit_bytes = 400_000  # what is read at once is less
    limits = RequestLimits(max_body_bytes=limit_bytes)
    async with serving(frontend, ConnectionLimits(request_timeout_s=1.5), limits=limits) as address:
        body = chat(user="x" * (limit_bytes - 1000))
        reader, writer = await asyncio.open_connection(*address)
        writer.write(request(body, CHAT_PATH, "Connection: close")[: -len(body)])
        # These come later, fill the room, and keep it for longer than the first one may take.
        slow = await _slow_clients(address, LARGE_AT_ONCE, limit_bytes - 1000)
        writer.write(body)
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
        for slow_reader, _ in slow:
            assert error(await slow_reader.read(), 408)["code"] == "request_timeout"
        for each in (writer, *(slow_writer for _, slow_writer in slow)):
            each.close()


async def test_large_bodies_have_no_more_memory_than_there_is_room(frontend: ScriptedFrontend) -> None:
    chunk_bytes, chunks, bodies = 50_000, 20, 4 * LARGE_AT_ONCE
    reader = BodyReader(chunk_bytes * chunks)
    here_bytes = most_bytes = 0

    async def read() -> None:
        nonlocal here_bytes
        left = chunks

        async def receive() -> dict[str, Any]:
            nonlocal left, here_bytes, most_bytes
            await asyncio.sleep(0)  # they all come at the same time
            left -= 1
            here_bytes += chunk_bytes
            most_bytes = max(most_bytes, here_bytes)
            return {"type": "http.request", "body": b" " * chunk_bytes, "more_body": left > 0}

        body = await reader.read(Request({"type": "http", "headers": []}, receive), bytes)
        here_bytes -= len(body)

    async with asyncio.timeout(TIMEOUT_S):
        await asyncio.gather(*(read() for _ in range(bodies)))
    room_bytes = LARGE_AT_ONCE * chunk_bytes * chunks
    in_hand_bytes = bodies * 2 * chunk_bytes  # what is small, and what waits
    assert most_bytes <= room_bytes + in_hand_bytes < bodies * chunk_bytes * chunks


# --- connections ---


async def test_connections_have_a_limit(frontend: ScriptedFrontend) -> None:
    async with serving(frontend, ConnectionLimits(max_connections=3)) as address:
        held = [await asyncio.open_connection(*address) for _ in range(3)]
        refused = await exchanged(address, request(chat()))
        assert error(refused, 503)["code"] == "too_many_connections"
        assert b"retry-after" in refused.lower()
        for _, writer in held:
            writer.close()
            await writer.wait_closed()
        while not (await health(address)).startswith(b"HTTP/1.1 200"):
            await asyncio.sleep(0)


async def test_without_descriptors_clients_wait_and_the_log_has_one_line(
    frontend: ScriptedFrontend, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(frontend) as address:
        client = socket.socket()
        client.setblocking(False)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        free = os.dup(client.fileno())
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
        try:
            await asyncio.get_running_loop().sock_connect(client, address)
            while not caplog.records:
                await asyncio.sleep(0.01)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        reader, writer = await asyncio.open_connection(sock=client)
        writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
        writer.close()
    (record,) = [record for record in caplog.records if record.levelno > logging.INFO]
    assert "Too many open files" in record.message
    assert record.exc_info is None


# --- what is not quite HTTP/1.1 ---


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01",
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\nA b\x7f: \x00\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        request(b"", "/v1/completions", "Content-Length: 5"),
    ],
)
async def test_what_is_not_http_gets_an_error_object(
    frontend: ScriptedFrontend, caplog: pytest.LogCaptureFixture, garbage: bytes
) -> None:
    async with serving(frontend) as address:
        answer = await exchanged(address, garbage)
        error(answer, 405 if garbage.startswith(b"CONNECT") else 400)
        assert (await health(address)).startswith(b"HTTP/1.1 200")
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


async def test_garbage_after_a_request_does_not_spoil_its_answer(frontend: ScriptedFrontend) -> None:
    frontend.script = Script(held=asyncio.Event())
    async with serving(frontend) as address:
        asked = asyncio.create_task(exchanged(address, request(chat(stream=True)), b"\x00garbage\r\n\r\n"))
        await frontend.submitted.wait()
        frontend.script.held.set()
        answer = await asked
        assert answer.startswith(b"HTTP/1.1 200")
        assert answer.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


async def test_a_body_that_breaks_off_in_garbage_is_refused(frontend: ScriptedFrontend) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\nzz\r\n"
    async with serving(frontend) as address:
        error(await exchanged(address, head), 400)


H2C = (
    "Connection: Upgrade, HTTP2-Settings",
    "Upgrade: h2c",
    "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
)


@pytest.mark.parametrize("piece_bytes", [1 << 20, 1, 100])
@pytest.mark.parametrize("upgrade", [H2C, ("Connection: upgrade, close", "Upgrade: websocket")])
async def test_a_request_that_would_rather_upgrade_keeps_its_body(
    frontend: ScriptedFrontend, caplog: pytest.LogCaptureFixture, upgrade: tuple[str, ...], piece_bytes: int
) -> None:
    async with serving(frontend, ConnectionLimits(keep_alive_s=SOON_S)) as address:
        # Three on one connection, the last of which does not upgrade.
        *others, last = (chat(), chat(user="x" * 300), chat(user="last"))
        sent = b"".join(request(body, "/v1/chat/completions", *upgrade) for body in others) + request(last)
        answer = await exchanged(address, *(sent[at : at + piece_bytes] for at in range(0, len(sent), piece_bytes)))
        expected = 1 if "close" in upgrade[0] else 3
        assert answer.count(b"HTTP/1.1 200 OK") == answer.count(b'"Hello!"') == expected
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


async def test_an_upgrade_of_a_chunked_body_keeps_it(frontend: ScriptedFrontend) -> None:
    body = chat()
    head = "\r\n".join(["POST /v1/chat/completions HTTP/1.1", "Host: x", "Transfer-Encoding: chunked", *H2C]).encode()
    async with serving(frontend, ConnectionLimits(keep_alive_s=SOON_S)) as address:
        answer = await exchanged(address, head + b"\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
    assert b'"Hello!"' in answer


async def test_very_many_upgrades_at_once_are_answered(frontend: ScriptedFrontend) -> None:
    one = "\r\n".join(["GET /health HTTP/1.1", "Host: x", *H2C]).encode() + b"\r\n\r\n"
    async with serving(frontend, ConnectionLimits(keep_alive_s=SOON_S)) as address:
        assert (await exchanged(address, one * 1500)).count(b"HTTP/1.1 200 OK") == 1500


JAVA = """
import java.net.URI;
import java.net.http.*;

class Client {
    public static void main(String[] args) throws Exception {
        HttpRequest request = HttpRequest.newBuilder(URI.create(args[0]))
            .header("Content-Type", "application/json")
            .POST(HttpRequest.BodyPublishers.ofString(args[1])).build();
        HttpClient client = HttpClient.newHttpClient();
        for (int i = 0; i < 2; i++) {
            HttpResponse<String> answer = client.send(request, HttpResponse.BodyHandlers.ofString());
            System.out.println(answer.statusCode() + " " + answer.body());
        }
    }
}
"""


@pytest.mark.skipif(shutil.which("java") is None, reason="no java here")
async def test_the_jdk_client_as_it_comes(frontend: ScriptedFrontend, tmp_path: Path) -> None:
    source = tmp_path / "Client.java"
    source.write_text(JAVA)
    async with serving(frontend) as address:
        url = "http://{}:{}/v1/chat/completions".format(*address)
        java = await asyncio.create_subprocess_exec(
            "java", str(source), url, chat().decode(), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        told = (await java.communicate())[0].decode()
    assert told.count("200 {") == told.count('"Hello!"') == 2, told


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
async def test_curl_that_asks_for_http2(frontend: ScriptedFrontend) -> None:
    async with serving(frontend) as address:
        url = "http://{}:{}/v1/chat/completions".format(*address)
        curl = await asyncio.create_subprocess_exec(
            *("curl", "-s", "--http2", url, "-H", "Content-Type: application/json", "-d", chat().decode()),
            stdout=asyncio.subprocess.PIPE,
        )
        told = (await curl.communicate())[0].decode()
    assert '"Hello!"' in told


@pytest.mark.parametrize("stream", [False, True])
async def test_http_1_0_gets_no_chunks(frontend: ScriptedFrontend, stream: bool) -> None:
    async with serving(frontend) as address:
        answer = await exchanged(address, request(chat(stream=stream), version="1.0"))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"chunked" not in head.lower()
    assert b"connection: close" in head.lower()
    if stream:
        assert body.startswith(b"data: {")
        assert body.endswith(b"data: [DONE]\n\n")
        assert all(event.startswith(b"data: ") for event in body.split(b"\n\n")[:-1])
    else:
        assert json.loads(body)["choices"][0]["message"]["content"] == "Hello!"


# --- clients that leave ---

_Leave = Callable[[asyncio.StreamWriter], Awaitable[None] | None]


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    writer.close()


@pytest.mark.parametrize(
    "leave", [asyncio.StreamWriter.close, asyncio.StreamWriter.write_eof, _reset], ids=["close", "half", "reset"]
)
@pytest.mark.parametrize("sent_bytes", [0, 10, 100, None], ids=["nothing", "line", "body", "whole"])
@pytest.mark.parametrize("stream", [False, True])
async def test_no_way_of_leaving_is_an_error(
    frontend: ScriptedFrontend, caplog: pytest.LogCaptureFixture, leave: _Leave, sent_bytes: int | None, stream: bool
) -> None:
    frontend.script = Script(hangs=True)
    async with serving(frontend) as address:
        reader, writer = await asyncio.open_connection(*address)
        writer.write(request(chat(stream=stream))[:sent_bytes])
        await writer.drain()
        if sent_bytes is None:
            await (reader.readuntil(b"lo") if stream else frontend.submitted.wait())
        leave(writer)
        if sent_bytes is None:
            await frontend.generations[0].cancelled.wait()
        assert (await health(address)).startswith(b"HTTP/1.1 200")
        writer.close()
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


async def test_a_request_that_was_answered_before_its_body_came_leaves_no_connection_behind(
    frontend: ScriptedFrontend,
) -> None:
    async with serving(frontend, ConnectionLimits(keep_alive_s=SOON_S)) as address:
        reader, writer = await asyncio.open_connection(*address)
        head, body = request(chat(), "/v1/nothing").split(b"\r\n\r\n")
        writer.write(head + b"\r\n\r\n")
        assert b" 404 " in await reader.readline()
        writer.write(body)
        await reader.read()  # to its end: nobody keeps it open for ever
        writer.close()


async def test_a_client_that_is_slow_to_take_its_answer_is_not_cut_off(frontend: ScriptedFrontend) -> None:
    text = "x" * (1 << 20)
    frontend.script = Script(texts=(text,))
    async with serving(frontend, ConnectionLimits(send_timeout_s=SOON_S / 3)) as address:
        reader, writer = await asyncio.open_connection(*address, limit=4096)
        writer.write(request(chat(), "/v1/chat/completions", "Connection: close"))
        taken = b""
        while piece := await reader.read(64 << 10):
            taken += piece
            await asyncio.sleep(SOON_S / 30)  # slow, but never still for as long as the limit
        assert text.encode() in taken
        writer.close()
