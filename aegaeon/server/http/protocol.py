"""One client's connection: uvicorn's, with bounds, and with every answer an error object or what was asked for."""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections.abc import Iterable
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from aegaeon.server.http.errors import ApiError
from aegaeon.server.http.limits import ConnectionLimits
from aegaeon.server.http.transport import LingeringTransport

logger = logging.getLogger(__name__)

REFUSED_LINGER_S = 2.0
_UPGRADE = frozenset({b"upgrade", b"http2-settings"})  # headers, and tokens of the header Connection


class _HeadTooLargeError(Exception):
    """The request line and headers have more bytes than they may."""


class HttpProtocol(HttpToolsProtocol):
    """A connection within ``limits``.

    Besides the bounds: a request that would rather be of another protocol (``Upgrade: h2c``) is answered in this one,
    with its body; an HTTP/1.0 client gets its stream without chunks; what is not HTTP is answered by an error object.
    """

    def __init__(self, limits: ConnectionLimits, **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self.timeout_keep_alive = limits.keep_alive_s  # type: ignore[assignment]  # uvicorn's own setting is whole
        self._limits = limits
        self._arrival: asyncio.TimerHandle | None = None  # runs until the request is here whole; cancelled: is held
        self._left_s = 0.0  # of an arrival that is held
        self._stall: asyncio.TimerHandle | None = None  # runs while the client takes nothing
        self._undelivered_bytes = 0  # received since there was last a piece of body: headers, or something like them
        self._delivered = False
        self._in_head = False
        self._deaf = False  # whatever comes is not for us to read any more

    # --- the connection ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._lingering = LingeringTransport(transport, lambda: self._arrival is not None, self._hold_arrival)
        super().connection_made(self._lingering)
        self._await_request(self._limits.request_timeout_s)
        if len(self.connections) > self._limits.max_connections:
            self._turn_away()

    def connection_lost(self, exc: Exception | None) -> None:
        self._arrived()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._deaf or self._lingering.lingers:
            return
        self._unset_keepalive_if_required()
        if self._arrival is None:
            self._await_request(self._limits.request_timeout_s)
        self._delivered = False
        self._feed(data)
        self._undelivered_bytes = 0 if self._delivered else self._undelivered_bytes + len(data)
        if self._undelivered_bytes > self._limits.max_header_bytes:
            self._refuse(self._head_too_large())

    def shutdown(self) -> None:
        super().shutdown()
        if self._lingering.lingers:
            self._lingering.close_now()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_stall(None)

    def _watch_stall(self, before_bytes: int | None) -> None:
        """Drop a client that has taken nothing since; one that is merely slow may be so."""
        left_bytes = self._lingering.get_write_buffer_size()
        if before_bytes is not None and left_bytes >= before_bytes:
            self._lingering.abort()
            return
        self._stall = self.loop.call_later(self._limits.send_timeout_s, self._watch_stall, left_bytes)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    # --- what the parser finds --------------------------------------------------------------------------------------

    def _feed(self, data: bytes) -> None:
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                data = self._without_upgrade(data[upgrade.args[0] :])
            except httptools.HttpParserError as error:
                too_large = isinstance(error.__context__, _HeadTooLargeError)
                self._refuse(self._head_too_large() if too_large else ApiError(400, "Invalid HTTP request received."))
                return

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._unset_keepalive_if_required()
        self._in_head = True
        if self._arrival is None:
            self._await_request(self._limits.request_timeout_s)

    def on_headers_complete(self) -> None:
        head_bytes = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if head_bytes > self._limits.max_header_bytes:
            raise _HeadTooLargeError
        if self.parser.should_upgrade():
            return  # the parser stops here, and begins again without the upgrade
        super().on_headers_complete()
        self._in_head = False
        self._delivered = True
        if self.parser.get_http_version() == "1.0":
            self.cycle.send = _Unframed(self.cycle).send  # type: ignore[method-assign]

    def on_chunk_header(self) -> None:
        """There is more of a chunked body."""
        self._delivered = True

    def on_body(self, body: bytes) -> None:
        self._delivered = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():
            self._arrived()
            super().on_message_complete()
            self._idle_if_answered()

    def _idle_if_answered(self) -> None:
        """The rest of a request that was answered before its body was here has come: now the connection is idle."""
        if self.cycle.response_complete and not self._lingering.is_closing():
            self._unset_keepalive_if_required()
            idle_s = self._limits.keep_alive_s
            self.timeout_keep_alive_task = self.loop.call_later(idle_s, self.timeout_keep_alive_handler)

    def _without_upgrade(self, rest: bytes) -> bytes:
        """The request once more, as one that wants nothing but an answer: the parser takes no body after an upgrade."""
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._refuse(ApiError(405, "Method Not Allowed: CONNECT"))
            return b""
        head = [method, b" ", self.url, b" HTTP/", self.parser.get_http_version().encode(), b"\r\n"]
        for name, value in _but_upgrade(self.headers):
            head += [name, b": ", value, b"\r\n"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return b"".join([*head, b"\r\n", rest])

    # --- time -------------------------------------------------------------------------------------------------------

    def _await_request(self, timeout_s: float) -> None:
        self._arrived()
        self._arrival = self.loop.call_later(timeout_s, self._not_arrived)

    def _arrived(self) -> None:
        if self._arrival is not None:
            self._arrival.cancel()
            self._arrival = None

    def _hold_arrival(self, reading: bool) -> None:
        """While we do not read, the client waits for us: that is not its time."""
        if self._arrival is None:
            return
        if not reading:
            self._left_s = self._arrival.when() - self.loop.time()
            self._arrival.cancel()
        elif self._arrival.cancelled():
            self._await_request(self._left_s)

    def _not_arrived(self) -> None:
        if self._lingering.is_closing() or not self._begun:
            self._lingering.close_now()
        elif self._answering or self.pipeline:  # what is late is the next request, which had to wait itself
            self._await_request(self._limits.request_timeout_s)
        else:
            message = f"The request was not here whole within {self._limits.request_timeout_s:g} s."
            self._refuse(ApiError(408, message, code="request_timeout"))
            self._lingering.close_now()

    @property
    def _answering(self) -> bool:
        """Whether a request that is here whole has not been answered to its end."""
        return bool(self.cycle and not self.cycle.response_complete and not self.cycle.more_body)

    @property
    def _begun(self) -> bool:
        """Whether part of a request is here, or a whole one that has no answer yet."""
        return bool(self._in_head or self._undelivered_bytes or (self.cycle and not self.cycle.response_complete))

    # --- refusals ---------------------------------------------------------------------------------------------------

    def _head_too_large(self) -> ApiError:
        message = f"The request's headers are larger than {self._limits.max_header_bytes} bytes."
        return ApiError(431, message, code="headers_too_large")

    def _turn_away(self) -> None:
        """There are too many connections; of those that only wait to be told so, too, there may be as many again."""
        if len(self.connections) > 2 * self._limits.max_connections:
            self._lingering.abort()
            return
        self._await_request(REFUSED_LINGER_S)
        message = f"There are {self._limits.max_connections} connections already; try again later."
        kind = "service_unavailable_error"
        self._refuse(ApiError(503, message, kind=kind, code="too_many_connections", headers={"Retry-After": "1"}))

    def _refuse(self, error: ApiError) -> None:
        """Answer what cannot be read on, and end the connection; whoever is being answered still gets everything."""
        self._deaf = True
        if self._answering:
            self.cycle.keep_alive = False
        elif self._abandon():
            self._lingering.close_now()
        else:
            self._lingering.write(_whole(error))
            self._lingering.close()

    def _abandon(self) -> bool:
        """Give up a request whose body does not come to its end; whether it is too late for another answer."""
        if not self.cycle or self.cycle.response_complete:
            return False
        self.cycle.disconnected = True
        self.cycle.message_event.set()
        return bool(self.pipeline) or self.cycle.response_started


def _whole(error: ApiError) -> bytes:
    """An error as a whole HTTP answer."""
    body = json.dumps(error.body).encode()
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        "connection": "close",
        "x-request-id": uuid.uuid4().hex,
        **(error.headers or {}),
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return STATUS_LINE[error.status] + lines.encode() + b"\r\n" + body


def _but_upgrade(headers: Iterable[tuple[bytes, bytes]]) -> Iterable[tuple[bytes, bytes]]:
    for name, value in headers:
        if name == b"connection":
            tokens = [token.strip() for token in value.split(b",")]
            yield name, b", ".join(token for token in tokens if token.lower() not in _UPGRADE)
        elif name not in _UPGRADE:
            yield name, value


class _Unframed:
    """Sends the response of a request of HTTP/1.0, which ends where its connection does."""

    def __init__(self, cycle: Any) -> None:
        self._cycle = cycle
        self._send = cycle.send

    async def send(self, message: Any) -> None:
        """What uvicorn's own does, but without chunks."""
        self._cycle.chunked_encoding = False
        self._cycle.expected_content_length = len(message.get("body", b""))
        await self._send(message)
