"""Where an instance's tokens go: one ring to each frontend."""

from __future__ import annotations

import logging

from aegaeon.runtime.wire.fd_exchange import FdExchangeError, fetch_fds
from aegaeon.runtime.wire.messages import Output
from aegaeon.runtime.wire.ring import RingWriter

logger = logging.getLogger(__name__)


class TokenSinks:
    """The frontends that this instance knows. What is sent to others, which have gone or never came, is for nobody."""

    def __init__(self, instance_name: str) -> None:
        self._instance_name = instance_name
        self._writers: dict[str, RingWriter[Output]] = {}

    def attach(self, frontend_id: str, address: str) -> None:
        """Open a ring to a frontend, unless it has gone by now. Raises ``FdExchangeError`` where one that is there
        cannot give it one, or there is no descriptor left: without it, requests would wait for ever."""
        try:
            fds = fetch_fds(address, f"tokens:{self._instance_name}")
        except FdExchangeError as error:
            if not error.gone:
                raise
            logger.warning("frontend %s is gone: %s", frontend_id, error)
        else:
            self._writers[frontend_id] = RingWriter(fds)

    def detach(self, frontend_id: str) -> None:
        """A frontend has gone: what waits for it is for nobody."""
        writer = self._writers.pop(frontend_id, None)
        if writer is not None:
            writer.close()

    def send(self, frontend_id: str, message: Output) -> None:
        writer = self._writers.get(frontend_id)
        if writer is not None:
            writer.send(message)

    @property
    def pending(self) -> bool:
        """Whether something waits for room in a ring."""
        return any(writer.pending for writer in self._writers.values())

    @property
    def blocked_fds(self) -> list[int]:
        """Doorbells of the rings that are full."""
        return [writer.room_fd for writer in self._writers.values() if writer.pending]

    def flush(self) -> None:
        for writer in self._writers.values():
            if writer.pending:
                writer.flush()

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()
