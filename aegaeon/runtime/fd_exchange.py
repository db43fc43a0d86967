"""Hand file descriptors from one process to another over an abstract Unix socket.

Abstract sockets and memfds have no file, so a killed process leaves nothing behind.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterable

_NAME_BYTES = 512
_MAX_FDS = 16


class FdExchangeError(Exception):
    """The other process does not answer, or does not know the name."""


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
        self._thread = threading.Thread(target=self._serve, name="fd-server", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:  # closed
                return
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
            try:
                socket.send_fds(connection, [b"ok"], fds)
            finally:
                close_fds(fds)
        except OSError:  # the client went away: nothing to tell it
            return

    def close(self) -> None:
        """Stop answering."""
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
            answer, fds, _, _ = socket.recv_fds(connection, 16, _MAX_FDS)
        except OSError as error:
            raise FdExchangeError(f"cannot fetch {name} from {address}: {error}") from error
    if answer != b"ok":
        raise FdExchangeError(f"{address} does not provide {name}: the other side has ended or dropped it")
    return fds
