"""What an instance reports to its driver, after what it has told its frontends."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from aegaeon.runtime.instance.token_sinks import TokenSinks
from aegaeon.runtime.wire import messages as m
from aegaeon.runtime.wire.link import Link

_ABOUT_OUTPUT = (m.Prefilled, m.SequenceFinished, m.SequenceFailed, m.TurnOver, m.Forgotten)


class OrderedReports:
    """An instance's link to its driver, on which no report of output overtakes the output.

    A ring to a frontend may be full; what waits for room in this process is lost if it is killed. So the driver hears
    of tokens only when they are where they outlive us: whatever the driver knows of, the frontend finds in the ring.
    """

    def __init__(self, link: Link[m.ToInstance, m.FromInstance], sinks: TokenSinks) -> None:
        self._link = link
        self._sinks = sinks
        self._held: deque[m.FromInstance] = deque()

    @property
    def data_fd(self) -> int:
        """Readable when messages may be there."""
        return self._link.data_fd

    @property
    def room_fd(self) -> int:
        """Readable when the full ring to the driver has room again."""
        return self._link.room_fd

    @property
    def pending(self) -> bool:
        """Whether messages wait for room in the ring to the driver."""
        return self._link.pending

    def send(self, message: m.FromInstance) -> None:
        """Report, as soon as no token waits for room."""
        if isinstance(message, _ABOUT_OUTPUT) and (self._held or self._sinks.pending):
            self._held.append(message)
        else:
            self._link.send(message)

    def flush(self) -> None:
        """Send what has waited; to be called after the sinks have been flushed."""
        while self._held and not self._sinks.pending:
            self._link.send(self._held.popleft())
        self._link.flush()

    def drain(self) -> Iterator[m.ToInstance]:
        """Messages of the driver that are there."""
        return self._link.drain()
