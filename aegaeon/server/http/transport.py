"""A transport that can be closed while the client still sends, without losing what was written.

A socket that is closed with unread bytes resets the connection, and the client loses the answer that says why.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any


class LingeringTransport(asyncio.Transport):
    """Passes everything on, but for ``close``: while ``still_sending()`` it only ends the writing.

    Whoever owns it drops what comes after that, and calls ``close_now`` when it has waited long enough; a client that
    has got its answer closes its side, which ends the connection too. ``on_reading`` hears whether it reads, whenever
    that changes.
    """

    def __init__(
        self, transport: asyncio.Transport, still_sending: Callable[[], bool], on_reading: Callable[[bool], None]
    ) -> None:
        super().__init__()
        self._transport = transport
        self._still_sending = still_sending
        self._on_reading = on_reading
        self.lingers = False

    def close(self) -> None:
        if self.is_closing():
            return
        if not self._still_sending():
            self.close_now()
            return
        self.lingers = True
        self._transport.write_eof()
        self.resume_reading()

    def close_now(self) -> None:
        """Close as soon as what was written is out, whatever the client does."""
        self._transport.close()

    def is_closing(self) -> bool:
        return self.lingers or self._transport.is_closing()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self.is_closing():
            self._transport.write(data)

    def get_write_buffer_size(self) -> int:
        return self._transport.get_write_buffer_size()

    def abort(self) -> None:
        self._transport.abort()

    def pause_reading(self) -> None:
        if not self.lingers:
            self._transport.pause_reading()
            self._on_reading(False)

    def resume_reading(self) -> None:
        self._transport.resume_reading()
        self._on_reading(True)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)
