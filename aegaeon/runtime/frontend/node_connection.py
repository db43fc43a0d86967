"""A frontend's connection to one node: a link to its driver, and a ring from each of its instances."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from functools import partial

from aegaeon.runtime.frontend.node_inbox import NodeInbox
from aegaeon.runtime.wire import messages as m
from aegaeon.runtime.wire.fd_exchange import FdServer, close_fds
from aegaeon.runtime.wire.link import open_link
from aegaeon.runtime.wire.ring import RingReader, create_ring, duplicate_fds

logger = logging.getLogger(__name__)

_RING = "tokens:"


class NodeConnection:
    """Belongs to an asyncio loop; ``receive(node, message)`` is called there for every message of the node.

    ``lost(node)`` is called once its driver's process has ended and everything that came from the node is received, or
    where something that came cannot be taken: what follows may rest on it, so there is to be another connection.
    """

    def __init__(
        self,
        node_id: str,
        address: str,
        receive: Callable[[NodeConnection, m.ToFrontend], None],
        lost: Callable[[NodeConnection], None] | None = None,
    ) -> None:
        self.node_id = node_id
        self._lost = lost
        self._gone: dict[str, int] = {}  # the last incarnation of each instance that is known to be dead
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self.frontend_id = secrets.token_hex(8)
        self._link = open_link(address, f"frontend:{self.frontend_id}")
        try:
            self._server = FdServer(self._provide)
        except OSError:  # no descriptor left
            self._link.close()
            raise
        self._inbox: NodeInbox[RingReader[m.Output]] = NodeInbox(self._link, lambda message: receive(self, message))
        self._loop.add_reader(self._link.data_fd, self._take, self._inbox.take_from_driver)
        self._loop.add_reader(self._link.peer_fd, self._lose)
        self._link.send(m.AttachFrontend(self.frontend_id, self._server.address))

    def send(self, message: m.FromFrontend) -> None:
        """Send a message to the node's driver; never blocks."""
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
        self._inbox.take_from_instances()
        self.drop_instance(instance_key)

    def drop_instance(self, instance_key: str) -> None:
        """The instance is dead: take what it has sent, and let go of its ring."""
        self._inbox.take_from(instance_key)
        instance_id, incarnation = _incarnation(instance_key)
        self._gone[instance_id] = incarnation
        self._close_ring(instance_key)

    def _close_ring(self, instance_key: str) -> None:
        ring = self._inbox.remove(instance_key)
        if ring is not None:
            self._loop.remove_reader(ring.data_fd)
            ring.close()

    def close(self) -> None:
        """Let go of everything, which gives up the requests that are under way; idempotent."""
        if self._closed:
            return
        self._closed = True
        self.send(m.DetachFrontend(self.frontend_id))
        self._server.close()
        self._loop.remove_reader(self._link.data_fd)
        self._loop.remove_reader(self._link.room_fd)
        self._loop.remove_reader(self._link.peer_fd)
        self._link.close()
        for instance_key in self._inbox.instances:
            self._close_ring(instance_key)

    def _lose(self) -> None:
        """The driver has ended, and its instances with it: what they had said counts, then there is no more."""
        self._loop.remove_reader(self._link.peer_fd)
        self._take(self._inbox.take_from_instances, self._inbox.take_from_driver)
        self._give_up()

    def _take(self, *reads: Callable[[], None]) -> None:
        try:
            for read in reads:
                read()
        except Exception:
            logger.exception("what node %s sent cannot be taken: the connection ends", self.node_id)
            self._give_up()

    def _give_up(self) -> None:
        if self._lost is not None and not self._closed:
            self._lost(self)

    def _provide(self, name: str) -> list[int]:
        """On the descriptor server's thread: a new ring for an instance's tokens."""
        if not name.startswith(_RING):
            raise KeyError(name)
        fds = create_ring()
        try:
            reader = RingReader[m.Output](duplicate_fds(fds))
        except OSError:
            close_fds(fds)
            raise
        self._loop.call_soon_threadsafe(self._watch, name.removeprefix(_RING), reader)
        return fds

    def _watch(self, instance_key: str, reader: RingReader[m.Output]) -> None:
        instance_id, incarnation = _incarnation(instance_key)
        if self._closed or incarnation <= self._gone.get(instance_id, -1):  # it died as soon as it had asked
            reader.close()
            return
        self._inbox.add(instance_key, reader)
        self._loop.add_reader(reader.data_fd, self._take, partial(self._inbox.take_from, instance_key))


def _incarnation(instance_key: str) -> tuple[str, int]:
    """The parts of a key: which instance, and how many processes it had before."""
    instance_id, _, number = instance_key.rpartition(":")
    return instance_id, int(number)
