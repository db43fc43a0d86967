"""The copies that may still be under way, and the memory that they touch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from aegaeon.device.common.errors import DeviceError
from aegaeon.device.common.protocol import Event, Stream
from aegaeon.device.common.span import Span


class PendingCopies:
    """Remembers each copy until its event has happened; ``happened`` answers for an event without blocking."""

    def __init__(self, happened: Callable[[Event], bool]) -> None:
        self._happened = happened
        self._copies: dict[Stream, deque[tuple[Event, tuple[Span, ...]]]] = {stream: deque() for stream in Stream}

    def add(self, event: Event, spans: tuple[Span, ...]) -> None:
        """Note a copy that touches these spans; forgets those of its stream that have landed."""
        copies = self._copies[event.stream]
        while copies and self._happened(copies[0][0]):
            copies.popleft()
        copies.append((event, spans))

    def require_none(self, span: Span, action: str) -> None:
        """Refuse ``action`` on memory that a copy under way touches."""
        for copies in self._copies.values():
            for event, spans in copies:
                if any(span.overlaps(touched) for touched in spans) and not self._happened(event):
                    raise DeviceError(
                        f"cannot {action} {span.size_bytes} bytes that a copy on stream {event.stream} still needs: "
                        f"synchronize with its event first"
                    )
