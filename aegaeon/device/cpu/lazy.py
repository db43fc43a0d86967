"""A device whose copies land as late as they may: for tests of the ordering rules.

Real copies usually land soon, so code that forgets to wait works, until it does not. Here a copy lands only when
somebody waits for it (or asks a second time whether it has happened), takes the source's bytes then, and until then its
destination reads as NaN (bytes 0xFF). Conflicting copies without an order raise. So, of the rules for KV transfers:

1. a step that does not wait for its blocks computes with NaN;
2. a block that is used again while a copy out of it is pending: a copy into it raises, and what a step writes into it
   arrives at the copy's destination in place of the right bytes;
3. a copy that does not wait for the one that produced its source raises;
4. a switch that does not wait for pending copies out is refused by ``unmap``, or is a case of rule 2.

What it cannot show: a copy out that begins before compute has produced its source, since compute is not late here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from aegaeon.device.common.errors import DeviceError
from aegaeon.device.common.pending_copies import PendingCopies
from aegaeon.device.common.protocol import CopyPair, Device, Event, MemoryInfo, Stream, VirtualRange
from aegaeon.device.common.span import Span, copy_spans

POISON = 0xFF  # NaN in every float format, -1 in every signed integer


@dataclass(frozen=True, slots=True)
class LateCopy:
    """A copy that was given and has not landed."""

    ticket: int
    destination: torch.Tensor
    source: torch.Tensor

    @property
    def written(self) -> Span:
        """The bytes that it writes."""
        return Span.of(self.destination)

    @property
    def read(self) -> Span:
        """The bytes that it reads."""
        return Span.of(self.source)


@dataclass(frozen=True, slots=True)
class LateWait:
    """What comes after it in its stream happens after ``event``."""

    ticket: int
    event: Event


class LazyDevice:
    """Wraps a device and holds its copies back; everything else is that device's. Closing it drops what is late."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._late: dict[Stream, deque[LateCopy | LateWait]] = {Stream.COPY_IN: deque(), Stream.COPY_OUT: deque()}
        self._issued = dict.fromkeys(self._late, 0)
        self._asked: set[Event] = set()
        self._pending = PendingCopies(self._has_landed)

    @property
    def name(self) -> str:
        return f"lazy {self._device.name}"

    @property
    def torch_device(self) -> torch.device:
        return self._device.torch_device

    @property
    def pages(self) -> int:
        return self._device.pages

    @property
    def page_bytes(self) -> int:
        return self._device.page_bytes

    def reserve(self, size_bytes: int) -> VirtualRange:
        return self._device.reserve(size_bytes)

    def map(self, virtual_range: VirtualRange, offset_bytes: int, pages: Sequence[int]) -> None:
        self._device.map(virtual_range, offset_bytes, pages)

    def unmap(self, virtual_range: VirtualRange, offset_bytes: int, size_bytes: int) -> None:
        self._pending.require_none(Span(virtual_range.address + offset_bytes, size_bytes), "unmap")
        self._device.unmap(virtual_range, offset_bytes, size_bytes)

    def release(self, virtual_range: VirtualRange) -> None:
        self._device.release(virtual_range)

    def view(
        self, virtual_range: VirtualRange, offset_bytes: int, shape: Sequence[int], dtype: torch.dtype
    ) -> torch.Tensor:
        return self._device.view(virtual_range, offset_bytes, shape, dtype)

    def pin(self, memory: torch.Tensor) -> None:
        self._device.pin(memory)

    def unpin(self, memory: torch.Tensor) -> None:
        self._pending.require_none(Span.of(memory), "unpin")
        self._device.unpin(memory)

    def copy(self, destination: torch.Tensor, source: torch.Tensor, stream: Stream) -> Event:
        spans = written, read = copy_spans(destination, source)
        if stream is Stream.COMPUTE:
            self._require_no_race({}, written, read)
            return self._device.copy(destination, source, stream)
        before = self._ordered_before(Event(stream, self._issued[stream]), {})
        self._require_no_race(before, written, read)
        self._land_readers(before, written)
        self._device.copy(torch.empty_like(source), source, Stream.COMPUTE)  # refuses now what it would refuse later
        self._device.copy(destination, _poison_like(destination), Stream.COMPUTE)
        event = Event(stream, self._next_ticket(stream))
        self._late[stream].append(LateCopy(event.ticket, destination, source))
        self._pending.add(event, spans)
        return event

    def copy_many(self, pairs: Sequence[CopyPair], stream: Stream) -> Event:
        for destination, source in pairs:
            self.copy(destination, source, stream)
        return self.record(stream)

    def record(self, stream: Stream) -> Event:
        return self._device.record(stream) if stream is Stream.COMPUTE else Event(stream, self._issued[stream])

    def wait(self, stream: Stream, event: Event) -> None:
        if stream is Stream.COMPUTE:
            self.synchronize(event)
        elif stream is not event.stream and event.stream is not Stream.COMPUTE and not self._has_landed(event):
            self._late[stream].append(LateWait(self._next_ticket(stream), event))

    def synchronize(self, event: Event) -> None:
        if event.stream is Stream.COMPUTE:
            self._device.synchronize(event)
        else:
            self._land(event)

    def query(self, event: Event) -> bool:
        if event.stream is Stream.COMPUTE:
            return self._device.query(event)
        if event in self._asked:
            self._land(event)
        landed = self._has_landed(event)
        (self._asked.discard if landed else self._asked.add)(event)
        return landed

    def memory_info(self) -> MemoryInfo:
        return self._device.memory_info()

    def close(self) -> None:
        for late in self._late.values():
            late.clear()
        self._device.close()

    def _next_ticket(self, stream: Stream) -> int:
        self._issued[stream] += 1
        return self._issued[stream]

    def _has_landed(self, event: Event) -> bool:
        if event.ticket > self._issued[event.stream]:
            raise DeviceError(f"{event} is not of this device: use events with the device that gave them")
        late = self._late[event.stream]
        return not late or late[0].ticket > event.ticket

    def _land(self, event: Event) -> None:
        """Carry out a stream's work up to an event, and before it what that waits for.

        An event names only what was given before, so this ends: a stream that is met again is asked for less.
        """
        while not self._has_landed(event):
            work = self._late[event.stream][0]
            if isinstance(work, LateWait):
                self._land(work.event)
            else:
                self._device.copy(work.destination, work.source, Stream.COMPUTE)
            self._late[event.stream].popleft()

    def _ordered_before(self, event: Event, known: dict[Stream, int]) -> dict[Stream, int]:
        """The last ticket of each stream that happens before an event is over, by stream order and waits."""
        if known.get(event.stream, -1) < event.ticket:
            known[event.stream] = event.ticket
            for work in self._late[event.stream]:
                if isinstance(work, LateWait) and work.ticket <= event.ticket:
                    self._ordered_before(work.event, known)
        return known

    def _require_no_race(self, before: dict[Stream, int], written: Span, read: Span) -> None:
        """Refuse a copy that touches what a late one writes, or writes what it reads, unless that is ordered before."""
        for stream, copy in self._late_copies():
            conflict = written.overlaps(copy.read) or written.overlaps(copy.written) or read.overlaps(copy.written)
            if conflict and copy.ticket > before.get(stream, 0):
                raise DeviceError(
                    f"this copy and copy {copy.ticket} of stream {stream} touch the same bytes, in either order: "
                    f"let the stream wait for that one's event first"
                )

    def _land_readers(self, before: dict[Stream, int], written: Span) -> None:
        """Land the copies that read what is about to be poisoned and rightly come before."""
        for stream, copy in self._late_copies():
            if copy.ticket <= before.get(stream, 0) and written.overlaps(copy.read):
                self._land(Event(stream, copy.ticket))

    def _late_copies(self) -> list[tuple[Stream, LateCopy]]:
        return [(stream, work) for stream, late in self._late.items() for work in late if isinstance(work, LateCopy)]


def _poison_like(tensor: torch.Tensor) -> torch.Tensor:
    poison = torch.full((tensor.nbytes,), POISON, dtype=torch.uint8, device=tensor.device)
    return poison.view(tensor.dtype).view(tensor.shape)
