"""A GPU as a device: pages of its memory, mapped where ranges are reserved (CUDA's virtual memory API); copies on
streams of their own, one for each direction.

Addresses stay what they are while pages come and go, so graphs captured for a model hold across every switch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from math import prod

import torch

from aegaeon.device.common.address_space import AddressSpace
from aegaeon.device.common.errors import DeviceError
from aegaeon.device.common.pending_copies import PendingCopies
from aegaeon.device.common.pinned_memory import PinnedMemory
from aegaeon.device.common.protocol import CopyPair, Event, MemoryInfo, Stream, VirtualRange
from aegaeon.device.common.span import Span, copy_spans
from aegaeon.device.cuda.driver import CudaDriver, CudaError
from aegaeon.device.cuda.pages import CudaPages
from aegaeon.device.cuda.timeline import CudaTimeline

logger = logging.getLogger(__name__)

_PIN_BYTES = 64 << 30
"""Registered with one call, at most: calls of 512 GiB fail on some drivers (r580)."""

BytesAt = Callable[[int, int], torch.Tensor]


class CudaDevice:
    """A ``Device`` of GPU memory. It owns ``driver`` and closes it.

    ``bytes_at(address, size_bytes)`` makes tensors on ``torch_device``; ``compute_stream`` gives the driver's handle of
    the stream that torch computes on. Raises ``DeviceError`` where the device has too little memory for the pages.
    """

    def __init__(
        self,
        driver: CudaDriver,
        pages: int,
        page_bytes: int,
        *,
        bytes_at: BytesAt,
        torch_device: torch.device,
        compute_stream: Callable[[], int],
        memory_flag: str,
    ) -> None:
        self._space = AddressSpace(pages, page_bytes)
        self._driver = driver
        self._bytes_at = bytes_at
        self._torch_device = torch_device
        self._memory = CudaPages(driver, pages, page_bytes, memory_flag)
        self._bases: dict[VirtualRange, torch.Tensor] = {}
        self._streams = {stream: driver.stream_create() for stream in (Stream.COPY_IN, Stream.COPY_OUT)}
        self._timelines = {Stream.COMPUTE: CudaTimeline(driver, compute_stream)}
        for stream in self._streams:
            self._timelines[stream] = CudaTimeline(driver, partial(self._streams.__getitem__, stream))
        self._pending = PendingCopies(self.query)
        self._pinned = PinnedMemory()
        self._registered: dict[Span, tuple[int, ...]] = {}  # addresses, one for each call
        self._closed = False

    @property
    def name(self) -> str:
        return f"cuda:{self._driver.ordinal} {self._driver.name}"

    @property
    def torch_device(self) -> torch.device:
        return self._torch_device

    @property
    def pages(self) -> int:
        return self._space.pages

    @property
    def page_bytes(self) -> int:
        return self._space.page_bytes

    def stream_handle(self, stream: Stream) -> int:
        """The driver's stream, for others who give it work; events are recorded after that as after any other."""
        return self._timelines[stream].handle

    def reserve(self, size_bytes: int) -> VirtualRange:
        self._require_open()
        size_bytes = self._space.round_up(size_bytes)
        reserved = VirtualRange(self._driver.mem_address_reserve(size_bytes), size_bytes)
        self._space.enter(reserved)
        self._bases[reserved] = self._bytes_at(reserved.address, size_bytes)
        return reserved

    def map(self, virtual_range: VirtualRange, offset_bytes: int, pages: Sequence[int]) -> None:
        span = self._space.map(virtual_range, offset_bytes, pages)
        try:
            self._memory.map(span.address, pages)
        except CudaError:
            self._space.unmap(virtual_range, offset_bytes, span.size_bytes)
            raise

    def unmap(self, virtual_range: VirtualRange, offset_bytes: int, size_bytes: int) -> None:
        self._pending.require_none(self._space.mapped_span(virtual_range, offset_bytes, size_bytes), "unmap")
        span = self._space.unmap(virtual_range, offset_bytes, size_bytes)
        self._memory.unmap(span.address, span.size_bytes)

    def release(self, virtual_range: VirtualRange) -> None:
        self._space.leave(virtual_range)
        del self._bases[virtual_range]
        self._driver.mem_address_free(virtual_range.address, virtual_range.size_bytes)

    def view(
        self, virtual_range: VirtualRange, offset_bytes: int, shape: Sequence[int], dtype: torch.dtype
    ) -> torch.Tensor:
        size_bytes = prod(shape) * dtype.itemsize
        self._space.mapped_span(virtual_range, offset_bytes, size_bytes)
        if offset_bytes % dtype.itemsize:
            raise DeviceError(f"offset {offset_bytes} is not aligned for {dtype}: use a multiple of {dtype.itemsize}")
        return self._bases[virtual_range][offset_bytes : offset_bytes + size_bytes].view(dtype).view(tuple(shape))

    def pin(self, memory: torch.Tensor) -> None:
        """As the protocol says; where the system refuses, copies still work, and a warning says what that costs."""
        span = Span.of(self._within_reach(memory))
        self._pinned.add(span)
        self._registered[span] = self._register(span)

    def unpin(self, memory: torch.Tensor) -> None:
        span = Span.of(memory)
        self._pending.require_none(span, "unpin")
        self._pinned.remove(span)
        self._unregister(self._registered.pop(span))

    def copy(self, destination: torch.Tensor, source: torch.Tensor, stream: Stream) -> Event:
        return self.copy_many([(destination, source)], stream)

    def copy_many(self, pairs: Sequence[CopyPair], stream: Stream) -> Event:
        self._require_open()
        spans = [copy_spans(self._within_reach(written), self._within_reach(read)) for written, read in pairs]
        for span in (span for pair in spans for span in pair):
            self._space.require_mapped(span)
        self._submit([(written, read) for written, read in spans if written.size_bytes], stream)
        event = Event(stream, self._timelines[stream].mark(*(tensor for pair in pairs for tensor in pair)))
        self._pending.add(event, tuple(span for pair in spans for span in pair))
        return event

    def record(self, stream: Stream) -> Event:
        """On a copy stream also after work that others gave to ``stream_handle``."""
        self._require_open()
        return Event(stream, self._timelines[stream].mark())

    def wait(self, stream: Stream, event: Event) -> None:
        if stream is not event.stream and not self.query(event):
            awaited = self._timelines[event.stream].event_of(event.ticket)
            if awaited is not None:
                self._driver.stream_wait_event(self._timelines[stream].handle, awaited)

    def synchronize(self, event: Event) -> None:
        self._require_mine(event)
        self._timelines[event.stream].synchronize(event.ticket)

    def query(self, event: Event) -> bool:
        self._require_mine(event)
        return self._timelines[event.stream].has_happened(event.ticket)

    def memory_info(self) -> MemoryInfo:
        return MemoryInfo(self.pages * self.page_bytes, self._space.mapped_bytes, self._space.reserved_bytes)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for timeline in self._timelines.values():
            timeline.close()
        for stream in self._streams.values():
            self._driver.stream_destroy(stream)
        for registered in self._registered.values():
            self._unregister(registered)
        self._registered.clear()
        for reserved in self._space.ranges:
            self._free(reserved)
        self._space = AddressSpace(self.pages, self.page_bytes)
        self._bases.clear()
        self._memory.close()
        self._driver.close()

    def _submit(self, spans: Sequence[tuple[Span, Span]], stream: Stream) -> None:
        handle = self._timelines[stream].handle
        if len(spans) > 1 and stream is not Stream.COMPUTE and self._driver.has_batches:
            destinations, sources = zip(*((written.address, read.address) for written, read in spans), strict=True)
            self._driver.memcpy_batch_async(destinations, sources, [read.size_bytes for _, read in spans], handle)
            return
        for written, read in spans:
            self._driver.memcpy_async(written.address, read.address, read.size_bytes, handle)

    def _register(self, span: Span) -> tuple[int, ...]:
        """The addresses registered: those of all pieces, or none where the system refuses one."""
        done: list[int] = []
        try:
            for address in range(span.address, span.end, _PIN_BYTES):
                self._driver.mem_host_register(address, min(_PIN_BYTES, span.end - address))
                done.append(address)
        except CudaError as error:
            self._unregister(done)
            logger.warning(
                "%.1f GiB of host memory cannot be pinned (%s): copies from and to it are slower, and hold up "
                "the instance meanwhile (make gpu measures both); raise ulimit -l, or lower --kv-cache",
                span.size_bytes / 2**30,
                error,
            )
            return ()
        return tuple(done)

    def _unregister(self, addresses: Sequence[int]) -> None:
        for address in addresses:
            self._driver.mem_host_unregister(address)

    def _free(self, reserved: VirtualRange) -> None:
        for span in self._space.mapped_spans(reserved):
            self._memory.unmap(span.address, span.size_bytes)
        self._driver.mem_address_free(reserved.address, reserved.size_bytes)

    def _within_reach(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.device.type != "cpu" and tensor.device != self._torch_device:
            raise DeviceError(
                f"a tensor on {tensor.device} has no memory here: use views of this device, or host memory"
            )
        return tensor

    def _require_mine(self, event: Event) -> None:
        if event.ticket > self._timelines[event.stream].issued:
            raise DeviceError(f"{event} is not of this device: use events with the device that gave them")

    def _require_open(self) -> None:
        if self._closed:
            raise DeviceError("the device is closed: reserve and copy before that")
