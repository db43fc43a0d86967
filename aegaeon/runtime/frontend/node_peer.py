"""A frontend's end of what connects it to a node."""

from __future__ import annotations

from typing import Protocol

from aegaeon.runtime.wire import messages as m


class NodePeer(Protocol):
    """A node of the pool, wherever it is."""

    @property
    def node_id(self) -> str: ...

    @property
    def frontend_id(self) -> str:
        """What the node knows us by."""
        ...

    def send(self, message: m.FromFrontend) -> None:
        """Send a message to the node's driver."""
        ...

    def drain_instance(self, instance_key: str) -> None:
        """Take what an instance that died had sent, and all that the node's others have sent so far."""
        ...

    def drop_instance(self, instance_key: str) -> None:
        """It will send no more: let go of what led to it."""
        ...

    def close(self) -> None: ...
