"""A duplex message link between two processes of a node: one ring each way, and a socket that tells of its end."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any, Generic

from aegaeon.runtime.wire.fd_exchange import close_fds, fetch_fds
from aegaeon.runtime.wire.ring import Received, RingReader, RingWriter, Sent, create_ring, duplicate_fds

_FDS_PER_RING = 3


class Link(Generic[Received, Sent]):
    """One end of a link, which takes messages of one kind and sends those of another.

    Nothing is ever written to ``lifeline``: the other process has its only other end.
    """

    def __init__(self, incoming: RingReader[Received], outgoing: RingWriter[Sent], lifeline: socket.socket) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._lifeline = lifeline

    @property
    def data_fd(self) -> int:
        """Readable when messages may be there."""
        return self._incoming.data_fd

    @property
    def room_fd(self) -> int:
        """Readable when a full outgoing ring has room again."""
        return self._outgoing.room_fd

    @property
    def peer_fd(self) -> int:
        """Readable when the other process has closed its end, or has died, or never took it."""
        return self._lifeline.fileno()

    @property
    def pending(self) -> bool:
        """Whether outgoing messages wait for room."""
        return self._outgoing.pending

    def send(self, message: Sent) -> None:
        self._outgoing.send(message)

    def flush(self) -> None:
        self._outgoing.flush()

    def drain(self) -> Iterator[Received]:
        return self._incoming.drain()

    def close(self) -> None:
        self._incoming.close()
        self._outgoing.close()
        self._lifeline.close()


def create_link() -> tuple[Link[Any, Any], list[int]]:
    """This process's end of a new link, and the descriptors to hand to the other process. Raises ``OSError``."""
    with contextlib.ExitStack() as undo:  # everything, or nothing
        fds: list[int] = []
        undo.callback(lambda: close_fds(fds))
        fds += create_ring()
        fds += create_ring()
        ours, theirs = socket.socketpair()
        fds.append(theirs.detach())
        undo.callback(ours.close)
        reader = RingReader[Any](duplicate_fds(fds[_FDS_PER_RING:-1]))
        undo.callback(reader.close)
        link = Link(reader, RingWriter[Any](duplicate_fds(fds[:_FDS_PER_RING])), ours)
        undo.pop_all()
    return link, fds


def open_link(address: str, name: str) -> Link[Any, Any]:
    """The other end of a link that the ``FdServer`` at ``address`` provides under ``name``."""
    return link_over(fetch_fds(address, name))


def link_over(fds: list[int]) -> Link[Any, Any]:
    """The other end of a link, by the descriptors of ``create_link``, which it owns from now on. Raises ``OSError``."""
    try:
        incoming, outgoing = RingReader[Any](fds[:_FDS_PER_RING]), RingWriter[Any](fds[_FDS_PER_RING:-1])
    except OSError:
        close_fds(fds)  # above all the lifeline: by that the other side hears of it
        raise
    return Link(incoming, outgoing, socket.socket(fileno=fds[-1]))
