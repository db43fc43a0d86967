"""CUDA's driver on host memory, as strict as its documentation and as late as it may be.

Memory: sizes are multiples of the granularity; memory is mapped whole, at reserved addresses, once in a place;
touching mapped memory before access was set is a segmentation fault (the mapping is made only then); nothing is
released while it is mapped, no addresses while something is mapped there.

Copies land only when somebody synchronizes with an event after them (or asks twice), read their source only then, and
until then their destination reads as NaN. Copies that touch the same bytes without an order by streams and events are
refused, as are copies from or to device memory that is not mapped, when they are given and when they land. Host memory
that is not registered is copied at once, as the driver may. Work on the default stream, which is the test's own thread,
is never late.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from aegaeon.device.common import virtual_memory
from aegaeon.device.common.span import Span
from aegaeon.device.cuda.device import CudaDevice
from aegaeon.device.cuda.driver import CudaDriver, CudaError, CudaMemory
from aegaeon.device.cuda.memory import DlDeviceType, bytes_at

COMPUTE = 0  # the default stream
_INVALID = "CUDA_ERROR_INVALID_VALUE"
_HANDLE = "CUDA_ERROR_INVALID_HANDLE"
_ADDRESS = "CUDA_ERROR_ILLEGAL_ADDRESS"

Clock = dict[int, int]
"""The last piece of work of each stream that is known to come before."""


@dataclass(frozen=True)
class Mapping:
    """Physical memory behind addresses."""

    span: Span
    handle: int


@dataclass(frozen=True)
class Copy:
    """A copy that was given to a stream."""

    number: int
    before: Clock
    written: Span
    read: Span


@dataclass
class FakeStream:
    """Work that has not been done, and all that comes before what is given next."""

    late: list[Copy] = field(default_factory=list)
    issued: int = 0
    before: Clock = field(default_factory=dict)


@dataclass
class FakeEvent:
    """What comes before it, as it was last recorded."""

    before: Clock = field(default_factory=dict)
    asked: bool = False


class FakeCudaDriver:
    """A ``CudaDriver``. ``leaks`` tells what was not given back."""

    def __init__(
        self, memory_bytes: int, granularity_bytes: int = 4096, *, batches: bool = True, all_pinned: bool = False
    ) -> None:
        self.ordinal = 0
        self.name = "Fake GPU"
        self.granularity_bytes = granularity_bytes
        self.has_batches = batches
        self.calls: list[str] = []
        self.refuses: set[str] = set()  # names of calls that fail
        self._all_pinned = all_pinned
        self._total_bytes = memory_bytes
        self._fd = os.memfd_create("fake-gpu")
        os.ftruncate(self._fd, memory_bytes)
        self._physical: dict[int, Span] = {}  # by handle; the address is the offset in the file
        self._reserved: dict[int, Span] = {}
        self._mappings: dict[int, Mapping] = {}
        self._accessible: set[int] = set()  # of the mappings, by address
        self._registered: dict[int, Span] = {}
        self._streams: dict[int, FakeStream] = {COMPUTE: FakeStream()}
        self._events: dict[int, FakeEvent] = {}
        self._last_handle = 0

    @property
    def leaks(self) -> dict[str, int]:
        """Everything that is still held, by kind."""
        held = {
            "memory": len(self._physical),
            "addresses": len(self._reserved),
            "mappings": len(self._mappings),
            "registrations": len(self._registered),
            "streams": len(self._streams) - 1,
            "events": len(self._events),
            "context": int(self._fd >= 0),
        }
        return {kind: count for kind, count in held.items() if count}

    # --- memory -----------------------------------------------------------------------------------------------------

    def mem_get_info(self) -> CudaMemory:
        used = sum(span.size_bytes for span in self._physical.values())
        return CudaMemory(self._total_bytes - used, self._total_bytes)

    def mem_address_reserve(self, size_bytes: int) -> int:
        self._enter("cuMemAddressReserve")
        self._require_granular("cuMemAddressReserve", size_bytes)
        address = virtual_memory.reserve(size_bytes)
        self._reserved[address] = Span(address, size_bytes)
        return address

    def mem_address_free(self, address: int, size_bytes: int) -> None:
        self._enter("cuMemAddressFree")
        self._require(self._reserved.get(address) == Span(address, size_bytes), "cuMemAddressFree", _INVALID, "no such")
        mapped = any(mapping.span.overlaps(Span(address, size_bytes)) for mapping in self._mappings.values())
        self._require(not mapped, "cuMemAddressFree", _INVALID, "memory is mapped there")
        del self._reserved[address]
        virtual_memory.release(address, size_bytes)

    def mem_create(self, size_bytes: int) -> int:
        self._enter("cuMemCreate")
        self._require_granular("cuMemCreate", size_bytes)
        taken = sorted(self._physical.values(), key=lambda span: span.address)
        offset = 0
        for span in taken:
            if span.address - offset >= size_bytes:
                break
            offset = span.end
        self._require(offset + size_bytes <= self._total_bytes, "cuMemCreate", "CUDA_ERROR_OUT_OF_MEMORY", "")
        handle = self._new_handle()
        self._physical[handle] = Span(offset, size_bytes)
        return handle

    def mem_release(self, handle: int) -> None:
        self._enter("cuMemRelease")
        self._require(handle in self._physical, "cuMemRelease", _INVALID, "no such memory")
        mapped = any(mapping.handle == handle for mapping in self._mappings.values())
        self._require(not mapped, "cuMemRelease", _INVALID, "it is mapped")
        del self._physical[handle]

    def mem_map(self, address: int, size_bytes: int, handle: int) -> None:
        self._enter("cuMemMap")
        self._require(handle in self._physical, "cuMemMap", _INVALID, "no such memory")
        self._require(self._physical[handle].size_bytes == size_bytes, "cuMemMap", _INVALID, "part of the memory")
        span = Span(address, size_bytes)
        inside = any(_contains(reserved, span) for reserved in self._reserved.values())
        self._require(inside, "cuMemMap", _INVALID, "addresses that are not reserved")
        self._require(address % self.granularity_bytes == 0, "cuMemMap", _INVALID, "not aligned")
        busy = any(m.handle == handle or m.span.overlaps(span) for m in self._mappings.values())
        self._require(not busy, "cuMemMap", _INVALID, "mapped already")
        self._mappings[address] = Mapping(span, handle)

    def mem_unmap(self, address: int, size_bytes: int) -> None:
        self._enter("cuMemUnmap")
        mappings = self._exactly("cuMemUnmap", Span(address, size_bytes))
        pending = any(c.written.overlaps(m.span) or c.read.overlaps(m.span) for c in self._late() for m in mappings)
        self._require(not pending, "cuMemUnmap", _ADDRESS, "a copy needs it")
        for mapping in mappings:
            del self._mappings[mapping.span.address]
            self._accessible.discard(mapping.span.address)
        virtual_memory.unmap_at(address, size_bytes)

    def mem_set_access(self, address: int, size_bytes: int) -> None:
        self._enter("cuMemSetAccess")
        for mapping in self._exactly("cuMemSetAccess", Span(address, size_bytes)):
            span, memory = mapping.span, self._physical[mapping.handle]
            virtual_memory.map_at(span.address, span.size_bytes, self._fd, memory.address, populate=False)
            self._accessible.add(span.address)

    def mem_host_register(self, address: int, size_bytes: int) -> None:
        self._enter("cuMemHostRegister")
        span = Span(address, size_bytes)
        taken = any(registered.overlaps(span) for registered in self._registered.values())
        self._require(not taken, "cuMemHostRegister", "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED", "")
        self._registered[address] = span

    def mem_host_unregister(self, address: int) -> None:
        self._enter("cuMemHostUnregister")
        span = self._registered.pop(address, None)
        if span is None:
            raise CudaError("cuMemHostUnregister", "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED")
        pending = any(copy.written.overlaps(span) or copy.read.overlaps(span) for copy in self._late())
        self._require(not pending, "cuMemHostUnregister", _ADDRESS, "a copy needs it")

    # --- work -------------------------------------------------------------------------------------------------------

    def memcpy_async(self, destination: int, source: int, size_bytes: int, stream: int) -> None:
        self._enter("cuMemcpyAsync")
        self._give(stream, Span(destination, size_bytes), Span(source, size_bytes))

    def memcpy_batch_async(
        self, destinations: Sequence[int], sources: Sequence[int], sizes_bytes: Sequence[int], stream: int
    ) -> None:
        self._enter("cuMemcpyBatchAsync")
        self._require(stream != COMPUTE, "cuMemcpyBatchAsync", _INVALID, "the default stream")
        copies = list(zip(destinations, sources, sizes_bytes, strict=True))
        self._require(bool(copies), "cuMemcpyBatchAsync", _INVALID, "no copies")
        for destination, source, size_bytes in reversed(copies):  # "in any order"
            self._give(stream, Span(destination, size_bytes), Span(source, size_bytes))

    def stream_create(self) -> int:
        self._enter("cuStreamCreate")
        stream = self._new_handle()
        self._streams[stream] = FakeStream()
        return stream

    def stream_destroy(self, stream: int) -> None:
        self._enter("cuStreamDestroy")
        given = self._stream("cuStreamDestroy", stream)
        self._land({stream: given.issued})
        del self._streams[stream]

    def stream_wait_event(self, stream: int, event: int) -> None:
        self._enter("cuStreamWaitEvent")
        before = self._event("cuStreamWaitEvent", event).before
        waiting = self._stream("cuStreamWaitEvent", stream)
        _merge(waiting.before, before)
        if stream == COMPUTE:
            self._land(before)

    def event_create(self) -> int:
        self._enter("cuEventCreate")
        event = self._new_handle()
        self._events[event] = FakeEvent()
        return event

    def event_destroy(self, event: int) -> None:
        self._enter("cuEventDestroy")
        self._event("cuEventDestroy", event)
        del self._events[event]

    def event_record(self, event: int, stream: int) -> None:
        self._enter("cuEventRecord")
        recorded, given = self._event("cuEventRecord", event), self._stream("cuEventRecord", stream)
        recorded.before = {**given.before, stream: given.issued}
        recorded.asked = False

    def event_query(self, event: int) -> bool:
        self._enter("cuEventQuery")
        queried = self._event("cuEventQuery", event)
        if queried.asked:
            self._land(queried.before)
        queried.asked = True
        return not any(
            copy.number <= queried.before.get(stream, 0)
            for stream, given in self._streams.items()
            for copy in given.late
        )

    def event_synchronize(self, event: int) -> None:
        self._enter("cuEventSynchronize")
        self._land(self._event("cuEventSynchronize", event).before)

    def close(self) -> None:
        self._enter("cuDevicePrimaryCtxRelease")
        os.close(self._fd)
        self._fd = -1

    # --- how copies land --------------------------------------------------------------------------------------------

    def _give(self, stream: int, written: Span, read: Span) -> None:
        given = self._stream("cuMemcpyAsync", stream)
        given.issued += 1
        given.before[stream] = given.issued
        for span in (written, read):
            self._require_accessible(span)
        self._order(given.before, written, read)
        copy = Copy(given.issued, dict(given.before), written, read)
        if stream == COMPUTE or not (self._is_registered(written) and self._is_registered(read)):
            self._land(given.before)
            _move(copy)
            return
        ctypes.memset(written.address, 0xFF, written.size_bytes)
        given.late.append(copy)

    def _order(self, before: Clock, written: Span, read: Span) -> None:
        """Refuse a race; land what rightly comes before and touches the same bytes."""
        for stream, given in list(self._streams.items()):
            for other in list(given.late):
                touched = (
                    written.overlaps(other.read) or written.overlaps(other.written) or read.overlaps(other.written)
                )
                if not touched:
                    continue
                ordered = other.number <= before.get(stream, 0)
                self._require(ordered, "cuMemcpyAsync", "RACE", "two copies touch the same bytes, in either order")
                if written.overlaps(other.read) or written.overlaps(other.written):
                    self._land({stream: other.number})

    def _land(self, before: Clock) -> None:
        for stream, number in before.items():
            given = self._streams.get(stream)
            while given is not None and given.late and given.late[0].number <= number:
                copy = given.late.pop(0)
                self._land(copy.before)
                for span in (copy.written, copy.read):
                    self._require_accessible(span)
                _move(copy)

    def _late(self) -> list[Copy]:
        return [copy for given in self._streams.values() for copy in given.late]

    # --- what is asked of arguments -----------------------------------------------------------------------------------

    def _enter(self, call: str) -> None:
        self.calls.append(call)
        self._require(self._fd >= 0, call, "CUDA_ERROR_CONTEXT_IS_DESTROYED", "closed")
        self._require(call not in self.refuses, call, "CUDA_ERROR_NOT_PERMITTED", "as the test wants it")

    def _require(self, holds: bool, call: str, code: str, why: str) -> None:
        if not holds:
            raise CudaError(call, code, why)

    def _require_granular(self, call: str, size_bytes: int) -> None:
        fits = size_bytes > 0 and size_bytes % self.granularity_bytes == 0
        self._require(fits, call, _INVALID, "no multiple of the granularity")

    def _require_accessible(self, span: Span) -> None:
        """Device addresses must be mapped, with access, from the first to the last; others are the host's."""
        if not span.size_bytes or not any(reserved.overlaps(span) for reserved in self._reserved.values()):
            return
        address = span.address
        while address < span.end:
            behind = next((m.span for m in self._mappings.values() if _contains(m.span, Span(address, 1))), None)
            if behind is None or behind.address not in self._accessible:
                raise CudaError("cuMemcpyAsync", _ADDRESS, "device memory that is not mapped")
            address = behind.end

    def _is_registered(self, span: Span) -> bool:
        if self._all_pinned or any(reserved.overlaps(span) for reserved in self._reserved.values()):
            return True
        return any(_contains(registered, span) for registered in self._registered.values())

    def _exactly(self, call: str, span: Span) -> list[Mapping]:
        """The mappings that together are these addresses."""
        inside = [mapping for mapping in self._mappings.values() if mapping.span.overlaps(span)]
        whole = all(_contains(span, mapping.span) for mapping in inside)
        self._require(whole, call, _INVALID, "part of a mapping")
        self._require(
            sum(m.span.size_bytes for m in inside) == span.size_bytes, call, _INVALID, "not mapped throughout"
        )
        return inside

    def _stream(self, call: str, stream: int) -> FakeStream:
        if stream not in self._streams:
            raise CudaError(call, _HANDLE, "no such stream")
        return self._streams[stream]

    def _event(self, call: str, event: int) -> FakeEvent:
        if event not in self._events:
            raise CudaError(call, _HANDLE, "no such event")
        return self._events[event]

    def _new_handle(self) -> int:
        self._last_handle += 1
        return self._last_handle


def cuda_device(driver: CudaDriver, pages: int, page_bytes: int) -> CudaDevice:
    """The CUDA backend with a driver of the tests; its tensors are the host's."""
    return CudaDevice(
        driver,
        pages,
        page_bytes,
        bytes_at=lambda address, size_bytes: bytes_at(address, size_bytes, DlDeviceType.CPU),
        torch_device=torch.device("cpu"),
        compute_stream=lambda: COMPUTE,
        memory_flag="--device-memory",
    )


def _merge(clock: Clock, other: Clock) -> None:
    for stream, number in other.items():
        clock[stream] = max(clock.get(stream, 0), number)


def _contains(outer: Span, inner: Span) -> bool:
    return outer.address <= inner.address and inner.end <= outer.end


def _move(copy: Copy) -> None:
    ctypes.memmove(copy.written.address, copy.read.address, copy.written.size_bytes)
