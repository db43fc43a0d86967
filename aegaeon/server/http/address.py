"""The socket to listen on: made before anything heavy is imported, so that a busy port is told at once."""

from __future__ import annotations

import socket

BACKLOG_CONNECTIONS = 2048


class AddressError(Exception):
    """The server cannot listen where it should; the message says why and what to do."""


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; with ``port`` 0 the system picks one (``getsockname`` tells). Raises ``AddressError``."""
    if not 0 <= port < 1 << 16:
        raise AddressError(_cannot_listen(host, port, "ports go from 0 to 65535"))
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sock = socket.create_server((host, port), family=family, backlog=BACKLOG_CONNECTIONS)
    except OSError as error:
        raise AddressError(_cannot_listen(host, port, error.strerror or str(error))) from error
    # Connections inherit it. asyncio sets it only where it sees that a socket is TCP, which it does not see on those
    # that come from this one; then the first token waits 40 ms for the client to acknowledge the headers.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _cannot_listen(host: str, port: int, reason: str) -> str:
    return f"Cannot listen on {host} port {port}: {reason}. Choose another address, or port 0 for any free one."
