"""Hand file descriptors from one process to another over an abstract Unix socket.

Abstract sockets and memfds have no file, so a killed process leaves nothing behind.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterable

logger = logging.getLogger(__name__)

_ACCEPT_PAUSE_S = 0.1
_NAME_BYTES = 512
_MAX_FDS = 16
_ANSWER_BYTES = 256


class FdExchangeError(Exception):
    """The other process does not answer, or does not know the name. ``gone``: nobody is there any more."""

    def __init__(self, message: str, gone: bool = False) -> None:
        super().__init__(message)
        self.gone = gone


class FdServer:
    """Answers requests for named descriptors.

    ``provide(name)`` is called on the server's thread and returns the descriptors to send; it raises ``KeyError`` for
    an unknown name. They are closed here once they are sent: provide duplicates of what must stay open.
    """

    def __init__(self, provide: Callable[[str], list[int]]) -> None:
        self._provide = provide
        self.address = f"aegaeon-{os.getpid()}-{secrets.token_hex(8)}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.bind("\0" + self.address)
        self._socket.listen(64)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="fd-server", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while not self._closed.is_set():
            try:
                connection, _ = self._socket.accept()
            except OSError as error:
                if not self._closed.is_set():  # no descriptor is left: one may be in a moment
                    logger.warning("cannot hand out descriptors: %s", error)
                    self._closed.wait(_ACCEPT_PAUSE_S)
                continue
            with connection:
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        # Abstract names have no permissions: only processes of the same user are served.
        if _peer_uid(connection) != os.getuid():
            return
        connection.settimeout(5.0)
        try:
            name = connection.recv(_NAME_BYTES).decode()
            try:
                fds = self._provide(name)
            except KeyError:
                connection.send(b"unknown")
                return
            except OSError as error:
                connection.send(str(error).encode()[:_ANSWER_BYTES])
                return
            try:
                socket.send_fds(connection, [b"ok"], fds)
            finally:
                close_fds(fds)
        except OSError:  # the client went away: nothing to tell it
            return

    def close(self) -> None:
        """Stop answering."""
        self._closed.set()
        # shutdown() wakes the thread out of accept(); close() alone does not.
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(timeout=5.0)


def close_fds(fds: Iterable[int]) -> None:
    """Close descriptors."""
    for fd in fds:
        os.close(fd)


def _peer_uid(connection: socket.socket) -> int:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int.from_bytes(credentials[4:8], "little")


def fetch_fds(address: str, name: str, timeout_s: float = 30.0) -> list[int]:
    """Descriptors that the server at ``address`` provides under ``name``; the caller owns them.

    Raises ``FdExchangeError`` when the server is gone or does not know the name.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(timeout_s)
        try:
            connection.connect("\0" + address)
            connection.send(name.encode())
            answer, fds, flags, _ = socket.recv_fds(connection, _ANSWER_BYTES, _MAX_FDS)
        except OSError as error:
            gone = isinstance(error, ConnectionError)
            raise FdExchangeError(f"cannot fetch {name} from {address}: {error}", gone) from error
    if answer != b"ok":
        close_fds(fds)
        gone = answer in (b"", b"unknown")
        reason = "the other side has ended or dropped it" if gone else answer.decode(errors="replace")
        raise FdExchangeError(f"{address} does not provide {name}: {reason}", gone)
    if flags & socket.MSG_CTRUNC:
        close_fds(fds)
        raise FdExchangeError(f"cannot fetch {name} from {address}: {os.strerror(errno.EMFILE)}")
    return fds
