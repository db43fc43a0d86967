"""What comes from a node, in an order in which nothing precedes what it rests on.

What the driver says of the end of a request rests on what instances have said before: to the driver, and in their rings
to us. The rings are not ordered among each other, so all of them are read before such a word of the driver counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

from aegaeon.runtime.wire import messages as m

_AFTER_OUTPUT = (m.Rejected, m.Failed, m.Finished, m.Interrupted)


class InboxSource(Protocol):
    """One end of a ring."""

    def drain(self) -> Iterator[m.ToFrontend]:
        """Messages that are there, oldest first."""
        ...


RingT = TypeVar("RingT", bound=InboxSource)


class NodeInbox(Generic[RingT]):
    """The rings of one node: its driver's, and one of each instance, by its key. ``receive`` takes every message."""

    def __init__(self, driver: InboxSource, receive: Callable[[m.ToFrontend], None]) -> None:
        self._driver = driver
        self._receive = receive
        self._rings: dict[str, RingT] = {}

    @property
    def instances(self) -> tuple[str, ...]:
        """The instances that have a ring."""
        return tuple(self._rings)

    def add(self, instance_key: str, ring: RingT) -> None:
        """An instance has opened its ring."""
        self._rings[instance_key] = ring

    def remove(self, instance_key: str) -> RingT | None:
        """Read no more of an instance; its ring, if it had one."""
        return self._rings.pop(instance_key, None)

    def take_from_driver(self) -> None:
        """Take what the driver has sent."""
        for message in self._driver.drain():
            if isinstance(message, _AFTER_OUTPUT):
                self.take_from_instances()
            self._receive(message)

    def take_from_instances(self) -> None:
        """Take what all instances have sent."""
        for instance_key in self.instances:
            self.take_from(instance_key)

    def take_from(self, instance_key: str) -> None:
        """Take what an instance has sent."""
        ring = self._rings.get(instance_key)
        if ring is not None:
            for message in ring.drain():
                self._receive(message)
