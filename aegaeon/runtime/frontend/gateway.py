"""Reach a frontend on another node: one TCP connection that carries what shared memory carries on its own node.

On the driver's node the ``Gateway`` stands in for the remote frontend: it has the link and the rings, and forwards what
comes through them, one frame per message (a step's tokens are one message). A frame is ``| length: u32 | pickle |``.
Pickles are only read from peers that know the secret, which travels over Ray.

Monotonic clocks differ between nodes: the remote end measures the offset when it connects, and translates every time.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import pickle
import secrets
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from aegaeon.accept import accept
from aegaeon.runtime.frontend.node_connection import NodeConnection
from aegaeon.runtime.wire import messages as m
from aegaeon.runtime.wire.clock import Clock

logger = logging.getLogger(__name__)

Moved = TypeVar("Moved")

_LENGTH = struct.Struct("<I")
_CLOCK = struct.Struct("<d")
_SECRET_BYTES = 32
_CLOCK_SAMPLES = 5
# Either side gives up by then. Who has not said the secret yet is one of so many; one more is turned away.
_HANDSHAKE_S = 10.0
_MOST_STRANGERS = 64
# A machine that loses its power or its network says nothing: the other end asks, and gives up after 20 s.
_KEEP_ALIVE = (
    (socket.TCP_KEEPIDLE, 5),
    (socket.TCP_KEEPINTVL, 5),
    (socket.TCP_KEEPCNT, 3),
    (socket.TCP_USER_TIMEOUT, 20_000),
)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a gateway listens, and what to say to it."""

    host: str
    port: int
    secret: bytes


class Gateway:
    """Serves remote frontends of one node, on a thread of its own."""

    def __init__(self, node_id: str, driver_address: str, host: str, clock: Clock) -> None:
        self._node_id = node_id
        self._driver_address = driver_address
        self._clock = clock
        self._secret = secrets.token_bytes(_SECRET_BYTES)
        self._socket = socket.create_server((host, 0))
        self.endpoint = Endpoint(host, self._socket.getsockname()[1], self._secret)
        self._connections: set[asyncio.Task[None]] = set()
        self._strangers = 0
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="gateway", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Drop all connections; the requests that came over them are cancelled. Idempotent."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join(timeout=5.0)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._accept())

    async def _accept(self) -> None:
        with self._socket:
            accepting = asyncio.create_task(accept(self._socket, self._protocol))
            await self._stopping.wait()
            accepting.cancel()
            await asyncio.gather(accepting, return_exceptions=True)
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _protocol(self) -> asyncio.StreamReaderProtocol:
        return asyncio.StreamReaderProtocol(asyncio.StreamReader(), self._connected)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if await self._greet(reader, writer):
                await self._carry(reader, writer)
        except (asyncio.IncompleteReadError, OSError):
            return  # the frontend went away, or the network between
        except Exception:
            logger.exception("a frontend of another machine loses its connection to node %s", self._node_id)
        finally:
            writer.close()

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Whether it is one of ours; then it knows our clock."""
        if self._strangers >= _MOST_STRANGERS:
            return False
        self._strangers += 1
        try:
            async with asyncio.timeout(_HANDSHAKE_S):
                _notice_silence(writer)
                if not hmac.compare_digest(await reader.readexactly(_SECRET_BYTES), self._secret):
                    return False
                await self._tell_time(reader, writer)
                return True
        finally:
            self._strangers -= 1

    async def _tell_time(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(_CLOCK_SAMPLES):
            await reader.readexactly(1)
            writer.write(_CLOCK.pack(self._clock.now_s()))

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Be the frontend of the node, until the connection ends."""
        under_way: set[str] = set()

        def forward(node: NodeConnection, message: m.ToFrontend) -> None:
            _forward(node, message, writer)
            if isinstance(message, m.Finished | m.Rejected | m.Failed):
                under_way.discard(message.request_id)

        node = NodeConnection(self._node_id, self._driver_address, forward, lambda _: writer.close())
        try:
            while True:
                message = await _read_frame(reader)
                if isinstance(message, m.Submit):
                    under_way.add(message.request.request_id)
                    message = replace(message, frontend_id=node.frontend_id)
                elif isinstance(message, m.Cancel):
                    under_way.discard(message.request_id)
                node.send(message)
        finally:
            for request_id in under_way:
                node.send(m.Cancel(request_id))
            node.close()


def _forward(node: NodeConnection, message: m.ToFrontend, writer: asyncio.StreamWriter) -> None:
    if isinstance(message, m.Interrupted):
        # What instances have said must overtake the question how far the request came.
        node.drain_instance(message.instance_id)
    if isinstance(message, m.InstanceGone):
        node.drop_instance(message.instance_key)
        return  # the rings are ours
    writer.write(_frame(message))


def _notice_silence(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEP_ALIVE:
        connection.setsockopt(socket.IPPROTO_TCP, option, value)


def _frame(message: object) -> bytes:
    payload = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(payload)) + payload


async def _read_frame(reader: asyncio.StreamReader) -> Any:
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    return pickle.loads(await reader.readexactly(length))


class RemoteConnection:
    """What ``NodeConnection`` is on the driver's own node, over TCP to its gateway."""

    def __init__(
        self,
        node_id: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        offset_s: float,
        receive: Callable[[RemoteConnection, m.ToFrontend], None],
        lost: Callable[[RemoteConnection], None],
    ) -> None:
        self.node_id = node_id
        self.frontend_id = ""  # the gateway is the frontend that the node knows
        self._writer = writer
        self._offset_s = offset_s
        self._receive = receive
        self._lost = lost
        self._task = asyncio.create_task(self._read(reader))

    @classmethod
    async def open(
        cls,
        node_id: str,
        endpoint: Endpoint,
        clock: Clock,
        receive: Callable[[RemoteConnection, m.ToFrontend], None],
        lost: Callable[[RemoteConnection], None],
    ) -> RemoteConnection:
        """Connect, and find out how the node's clock differs from ours. Raises ``OSError``, or ``EOFError`` where the
        gateway turns us away."""
        async with asyncio.timeout(_HANDSHAKE_S):
            reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
            with contextlib.ExitStack() as undo:
                undo.callback(writer.close)
                _notice_silence(writer)
                writer.write(endpoint.secret)
                samples = [await _sample_clock(reader, writer, clock) for _ in range(_CLOCK_SAMPLES)]
                undo.pop_all()
        _, offset_s = min(samples)
        return cls(node_id, reader, writer, offset_s, receive, lost)

    def send(self, message: m.FromFrontend) -> None:
        """Send a message to the node's driver."""
        self._writer.write(_frame(_translate(message, self._offset_s)))

    def drain_instance(self, instance_key: str) -> None:
        """Nothing to do: the gateway has read its node's rings before it passed on that an instance died."""

    def drop_instance(self, instance_key: str) -> None:
        """Nothing to do: the gateway has the ring."""

    def close(self) -> None:
        self._task.cancel()
        self._writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                self._receive(self, _translate(await _read_frame(reader), -self._offset_s))
        except (asyncio.IncompleteReadError, OSError):  # its machine, too, or the network between
            self._lost(self)
        except Exception:
            logger.exception("what node %s sent cannot be taken: the connection ends", self.node_id)
            self._lost(self)


async def _sample_clock(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, clock: Clock
) -> tuple[float, float]:
    """(round trip, offset of the peer's clock), in seconds."""
    before_s = clock.now_s()
    writer.write(b"?")
    (there_s,) = _CLOCK.unpack(await reader.readexactly(_CLOCK.size))
    after_s = clock.now_s()
    return after_s - before_s, there_s - (before_s + after_s) / 2


def _translate(message: Moved, offset_s: float) -> Moved:
    """The message with its times moved by ``offset_s``."""
    match message:
        case m.Submit():
            request = replace(message.request, arrival_s=message.request.arrival_s + offset_s)
            return replace(message, request=request)
        case m.Tokens() | m.NodeState():
            field = "time_s" if isinstance(message, m.Tokens) else "now_s"
            return replace(message, **{field: getattr(message, field) + offset_s})
        case m.ModelState(retry_s=float(retry_s)):
            return replace(message, retry_s=retry_s + offset_s)
        case m.Spans():
            spans = tuple(
                replace(span, start_s=span.start_s + offset_s, end_s=span.end_s + offset_s) for span in message.spans
            )
            return replace(message, spans=spans)
        case _:
            return message
