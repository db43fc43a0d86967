"""What a client may take: bytes, connections, time, and what one request may ask for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Bounds that hold before anything is known of a client.

    ``max_header_bytes`` is for the request line and all headers. A request must be here whole ``request_timeout_s``
    after its first byte (and the first byte that long after the connection was made); between requests a connection
    may be idle for ``keep_alive_s``. A client that takes none of its output for ``send_timeout_s`` has gone.
    """

    max_connections: int = 8192
    max_header_bytes: int = 64 << 10
    request_timeout_s: float = 60.0
    keep_alive_s: float = 75.0
    send_timeout_s: float = 60.0


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """Bounds of one generation request. ``max_choices``: prompts times ``n``."""

    max_body_bytes: int = 16 << 20
    max_choices: int = 128
    max_stop_strings: int = 16
    max_stop_chars: int = 1024
