"""A frontend's connection to one node: a link to its driver, and a ring from each of its instances.

What the driver says of the end of a request rests on what instances have said of it before, to the driver and here.
The rings are not ordered among each other, so all of them are read before such a word of the driver is passed on.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable

from aegaeon.runtime import messages as m
from aegaeon.runtime.fd_exchange import FdServer
from aegaeon.runtime.link import open_link
from aegaeon.runtime.ring import RingReader, create_ring, duplicate_fds

_AFTER_TOKENS = (m.Rejected, m.Failed, m.Finished, m.Interrupted)


class NodeConnection:
    """Belongs to an asyncio loop; ``receive(node, message)`` is called there for every message of the node."""

    def __init__(self, node_id: str, address: str, receive: Callable[[NodeConnection, object], None]) -> None:
        self.node_id = node_id
        self.state: m.NodeState | None = None
        self._receive = receive
        self._loop = asyncio.get_running_loop()
        self._rings: dict[str, RingReader] = {}
        self._server = FdServer(self._provide)
        frontend_id = secrets.token_hex(8)
        self.frontend_id = frontend_id
        self._link = open_link(address, f"frontend:{frontend_id}")
        self._loop.add_reader(self._link.data_fd, self._drain_driver)
        self._link.send(m.AttachFrontend(frontend_id, self._server.address, os.getpid()))

    def send(self, message: object) -> None:
        """To the node's driver; never blocks."""
        self._link.send(message)
        if self._link.pending:
            self._loop.add_reader(self._link.room_fd, self._flush)

    def _flush(self) -> None:
        self._link.flush()
        if not self._link.pending:
            self._loop.remove_reader(self._link.room_fd)

    def drain_instance(self, instance_key: str) -> None:
        """An instance has died: take the last that it sent, and all that the others have sent so far.

        Nothing that comes out of its ring later can be taken for the output of the one that goes on.
        """
        self._drain_rings()
        self.drop_instance(instance_key)

    def drop_instance(self, instance_key: str) -> None:
        """The instance is dead and its ring empty."""
        ring = self._rings.pop(f"tokens:{instance_key}", None)
        if ring is not None:
            self._loop.remove_reader(ring.data_fd)
            ring.close()

    def close(self) -> None:
        """Let go of everything; requests that are under way are given up."""
        self.send(m.DetachFrontend(self.frontend_id))
        self._server.close()
        self._loop.remove_reader(self._link.data_fd)
        self._loop.remove_reader(self._link.room_fd)
        self._link.close()
        for name in tuple(self._rings):
            self.drop_instance(name.removeprefix("tokens:"))

    def _drain_driver(self) -> None:
        for message in self._link.drain():
            if isinstance(message, _AFTER_TOKENS):
                self._drain_rings()
            self._receive(self, message)

    def _drain_rings(self) -> None:
        for reader in tuple(self._rings.values()):
            self._drain_ring(reader)

    def _provide(self, name: str) -> list[int]:
        """On the descriptor server's thread: a new ring for an instance's tokens."""
        if not name.startswith("tokens:"):
            raise KeyError(name)
        fds = create_ring()
        reader = RingReader(duplicate_fds(fds))
        self._loop.call_soon_threadsafe(self._watch, name, reader)
        return fds

    def _watch(self, name: str, reader: RingReader) -> None:
        self._rings[name] = reader
        self._loop.add_reader(reader.data_fd, self._drain_ring, reader)

    def _drain_ring(self, reader: RingReader) -> None:
        for message in reader.drain():
            self._receive(self, message)
