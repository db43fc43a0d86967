"""Which host memory is registered with a device, and the rules about it."""

from __future__ import annotations

from aegaeon.device.common.errors import DeviceError
from aegaeon.device.common.span import Span


class PinnedMemory:
    """Spans that do not overlap; each is unpinned as it was pinned."""

    def __init__(self) -> None:
        self._spans: set[Span] = set()

    def add(self, span: Span) -> None:
        """Note that a span is pinned."""
        if any(span.overlaps(pinned) for pinned in self._spans):
            raise DeviceError(f"some of the {span.size_bytes} bytes are pinned already: pin memory once, as a whole")
        self._spans.add(span)

    def remove(self, span: Span) -> None:
        """Note that a span is not pinned any more."""
        if span not in self._spans:
            raise DeviceError(f"the {span.size_bytes} bytes are not pinned as such: unpin what was pinned, once")
        self._spans.remove(span)
