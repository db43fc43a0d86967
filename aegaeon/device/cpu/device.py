"""The CPU as a device: pages of one memory file, mapped where ranges are reserved; copies on threads.

Addresses are as stable as on a GPU, a switch remaps pages, and nothing is emulated but the distance.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from math import prod
from mmap import PAGESIZE

import torch

from aegaeon.device.common import virtual_memory
from aegaeon.device.common.address_space import AddressSpace
from aegaeon.device.common.errors import DeviceError
from aegaeon.device.common.pending_copies import PendingCopies
from aegaeon.device.common.pinned_memory import PinnedMemory
from aegaeon.device.common.protocol import CopyPair, Event, MemoryInfo, Stream, VirtualRange
from aegaeon.device.common.shared_memory import create_memfd
from aegaeon.device.common.span import Span, copy_spans
from aegaeon.device.cpu.copy_thread import CopyThread

Buffer = ctypes.Array[ctypes.c_uint8]


class CpuDevice:
    """A ``Device`` of host memory.

    ``COMPUTE`` is the calling thread, so its work is done by the time it can be named. ``COPY_IN`` and ``COPY_OUT`` are
    a thread each, which copies with the interpreter's lock released and takes no compute thread.

    With ``huge_pages`` a page that is mapped for the first time is collapsed into huge pages, where its size allows it
    and the kernel agrees. That is slow (seconds for a GiB, like any first touch) and happens once; from then on mapping
    a GiB takes 0.7 ms instead of 76.
    """

    name = "cpu"

    def __init__(self, pages: int, page_bytes: int, *, huge_pages: bool = True, memory_flag: str) -> None:
        if page_bytes < 1 or page_bytes % PAGESIZE:
            raise DeviceError(f"pages of {page_bytes} bytes: make them a multiple of the system's {PAGESIZE}")
        self._space = AddressSpace(pages, page_bytes)
        self._fd = create_memfd("aegaeon-cpu-pages", pages * page_bytes, flag=memory_flag)
        self._huge_pages = huge_pages and page_bytes % virtual_memory.HUGE_PAGE_BYTES == 0
        self._prepared = bytearray(pages)  # 1: was mapped before
        self._buffers: dict[VirtualRange, Buffer] = {}
        self._threads = {stream: CopyThread(f"aegaeon-{stream}") for stream in (Stream.COPY_IN, Stream.COPY_OUT)}
        self._pending = PendingCopies(self.query)
        self._pinned = PinnedMemory()
        self._closed = False

    @property
    def torch_device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def pages(self) -> int:
        return self._space.pages

    @property
    def page_bytes(self) -> int:
        return self._space.page_bytes

    def reserve(self, size_bytes: int) -> VirtualRange:
        self._require_open()
        size_bytes = self._space.round_up(size_bytes)
        try:
            reserved = VirtualRange(virtual_memory.reserve(size_bytes), size_bytes)
        except OSError as error:
            raise DeviceError(f"cannot reserve {size_bytes} bytes of addresses ({error}): raise ulimit -v") from error
        self._space.enter(reserved)
        self._buffers[reserved] = (ctypes.c_uint8 * size_bytes).from_address(reserved.address)
        return reserved

    def map(self, virtual_range: VirtualRange, offset_bytes: int, pages: Sequence[int]) -> None:
        span = self._space.map(virtual_range, offset_bytes, pages)
        address = span.address
        try:
            for first, count in _runs(pages):
                self._map_run(address, first, count)
                address += count * self.page_bytes
        except OSError as error:
            self._space.unmap(virtual_range, offset_bytes, span.size_bytes)
            virtual_memory.unmap_at(span.address, span.size_bytes)
            raise DeviceError(
                f"cannot map {len(pages)} pages ({error}): use larger pages, or raise vm.max_map_count"
            ) from error

    def unmap(self, virtual_range: VirtualRange, offset_bytes: int, size_bytes: int) -> None:
        self._pending.require_none(self._space.mapped_span(virtual_range, offset_bytes, size_bytes), "unmap")
        span = self._space.unmap(virtual_range, offset_bytes, size_bytes)
        if span.size_bytes:
            virtual_memory.unmap_at(span.address, span.size_bytes)

    def release(self, virtual_range: VirtualRange) -> None:
        self._space.leave(virtual_range)
        del self._buffers[virtual_range]
        virtual_memory.release(virtual_range.address, virtual_range.size_bytes)

    def view(
        self, virtual_range: VirtualRange, offset_bytes: int, shape: Sequence[int], dtype: torch.dtype
    ) -> torch.Tensor:
        elements = prod(shape)
        self._space.mapped_span(virtual_range, offset_bytes, elements * dtype.itemsize)
        if offset_bytes % dtype.itemsize:
            raise DeviceError(f"offset {offset_bytes} is not aligned for {dtype}: use a multiple of {dtype.itemsize}")
        if elements == 0:
            return torch.empty(tuple(shape), dtype=dtype)
        buffer = self._buffers[virtual_range]
        return torch.frombuffer(buffer, dtype=dtype, count=elements, offset=offset_bytes).view(tuple(shape))

    def pin(self, memory: torch.Tensor) -> None:
        self._pinned.add(Span.of(_on_host(memory)))

    def unpin(self, memory: torch.Tensor) -> None:
        span = Span.of(memory)
        self._pending.require_none(span, "unpin")
        self._pinned.remove(span)

    def copy(self, destination: torch.Tensor, source: torch.Tensor, stream: Stream) -> Event:
        self._require_open()
        spans = copy_spans(_on_host(destination), _on_host(source))
        for span in spans:
            self._space.require_mapped(span)
        if stream is Stream.COMPUTE:
            _move(destination, source)
            return self.record(stream)
        event = Event(stream, self._threads[stream].submit(partial(_move, destination, source)))
        self._pending.add(event, spans)
        return event

    def copy_many(self, pairs: Sequence[CopyPair], stream: Stream) -> Event:
        for destination, source in pairs:
            self.copy(destination, source, stream)
        return self.record(stream)

    def record(self, stream: Stream) -> Event:
        return Event(stream, 0 if stream is Stream.COMPUTE else self._threads[stream].issued)

    def wait(self, stream: Stream, event: Event) -> None:
        if stream is Stream.COMPUTE:
            self.synchronize(event)
        elif stream is not event.stream and not self.query(event):
            self._threads[stream].submit(partial(self._threads[event.stream].wait, event.ticket))

    def synchronize(self, event: Event) -> None:
        if not self.query(event):
            self._threads[event.stream].wait(event.ticket)

    def query(self, event: Event) -> bool:
        if event.stream is Stream.COMPUTE:
            return True
        thread = self._threads[event.stream]
        if event.ticket > thread.issued:
            raise DeviceError(f"{event} is not of this device: use events with the device that gave them")
        return thread.is_done(event.ticket)

    def memory_info(self) -> MemoryInfo:
        return MemoryInfo(self.pages * self.page_bytes, self._space.mapped_bytes, self._space.reserved_bytes)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for thread in self._threads.values():
            thread.close()
        for reserved in self._space.ranges:
            virtual_memory.release(reserved.address, reserved.size_bytes)
        self._space = AddressSpace(self.pages, self.page_bytes)
        self._buffers.clear()
        os.close(self._fd)

    def _require_open(self) -> None:
        if self._closed:
            raise DeviceError("the device is closed: reserve and copy before that")

    def _map_run(self, address: int, first: int, count: int) -> None:
        """Map neighbouring pages; what cannot be huge gets its page tables filled, which is faster than by faults."""
        size_bytes, offset_bytes = count * self.page_bytes, first * self.page_bytes
        fresh = self._huge_pages and not all(self._prepared[first : first + count])
        virtual_memory.map_at(address, size_bytes, self._fd, offset_bytes, populate=not fresh)
        if fresh:
            self._collapse(address, first, count)

    def _collapse(self, address: int, first: int, count: int) -> None:
        for index in range(count):
            if not self._prepared[first + index]:
                page = address + index * self.page_bytes
                for touched in range(page, page + self.page_bytes, virtual_memory.HUGE_PAGE_BYTES):
                    ctypes.memset(touched, 0, 1)
                virtual_memory.collapse(page, self.page_bytes)
                self._prepared[first + index] = 1


def _runs(pages: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Neighbouring pages in order, as (first page, count)."""
    for _, run in groupby(enumerate(pages), key=lambda entry: entry[1] - entry[0]):
        numbers = [page for _, page in run]
        yield numbers[0], len(numbers)


def _on_host(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.device.type != "cpu":
        raise DeviceError(f"a tensor on {tensor.device} has no memory here: use views of this device, or host memory")
    return tensor


def _move(destination: torch.Tensor, source: torch.Tensor) -> None:
    ctypes.memmove(destination.data_ptr(), source.data_ptr(), destination.nbytes)
