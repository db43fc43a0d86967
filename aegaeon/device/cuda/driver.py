"""The calls of CUDA's driver API that the backend makes, of one device.

A protocol, so that the backend is typed and tested where neither a driver nor its bindings are: ``cuda_bindings`` has
the real one, the tests have one that enforces the API's rules. Methods are named after the calls (``mem_map`` is
``cuMemMap``); addresses, handles, streams and events are integers; a call that fails raises ``CudaError``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from aegaeon.device.common.errors import DeviceError


class CudaError(DeviceError):
    """A driver call failed; ``code`` is CUDA's name for the reason, such as ``CUDA_ERROR_OUT_OF_MEMORY``."""

    def __init__(self, call: str, code: str, explanation: str = "") -> None:
        super().__init__(f"{call} failed: {code}{f' ({explanation})' if explanation else ''}")
        self.call = call
        self.code = code


class NoCudaError(DeviceError):
    """There is no CUDA device to be had here; the message says why."""


@dataclass(frozen=True, slots=True)
class CudaMemory:
    """Bytes of a device: how many there are, and how many nobody uses."""

    free_bytes: int
    total_bytes: int


class CudaDriver(Protocol):
    """One device; its primary context is current in the thread that made this. That thread makes all calls."""

    @property
    def ordinal(self) -> int:
        """The device's number among those that the process may see (``CUDA_VISIBLE_DEVICES``)."""
        ...

    @property
    def name(self) -> str:
        """What its maker calls it."""
        ...

    @property
    def granularity_bytes(self) -> int:
        """What sizes of physical memory are multiples of."""
        ...

    @property
    def has_batches(self) -> bool:
        """Whether ``memcpy_batch_async`` may be called."""
        ...

    def mem_get_info(self) -> CudaMemory:
        """Memory of the whole device (or of its MIG slice), as all processes leave it."""
        ...

    def mem_address_reserve(self, size_bytes: int) -> int:
        """Addresses without memory."""
        ...

    def mem_address_free(self, address: int, size_bytes: int) -> None:
        """Give addresses back, all that were reserved with one call; nothing may be mapped there."""
        ...

    def mem_create(self, size_bytes: int) -> int:
        """Physical memory of the device; a handle."""
        ...

    def mem_release(self, handle: int) -> None:
        """Give physical memory back."""
        ...

    def mem_map(self, address: int, size_bytes: int, handle: int) -> None:
        """Put all of the handle's memory behind reserved addresses; it cannot be used before ``mem_set_access``."""
        ...

    def mem_unmap(self, address: int, size_bytes: int) -> None:
        """Take away what was mapped, whole mappings only."""
        ...

    def mem_set_access(self, address: int, size_bytes: int) -> None:
        """Let the device read and write mapped addresses."""
        ...

    def mem_host_register(self, address: int, size_bytes: int) -> None:
        """Lock host memory and let the device reach it."""
        ...

    def mem_host_unregister(self, address: int) -> None:
        """Undo ``mem_host_register`` of the memory that begins here."""
        ...

    def memcpy_async(self, destination: int, source: int, size_bytes: int, stream: int) -> None:
        """Copy in stream order; where host memory is not registered this may block until it is done."""
        ...

    def memcpy_batch_async(
        self, destinations: Sequence[int], sources: Sequence[int], sizes_bytes: Sequence[int], stream: int
    ) -> None:
        """Several copies as one piece of work of the stream, in any order among themselves."""
        ...

    def stream_create(self) -> int:
        """A stream that does not wait for the default one."""
        ...

    def stream_destroy(self, stream: int) -> None:
        """Let go of a stream; its work is done, or will be."""
        ...

    def stream_wait_event(self, stream: int, event: int) -> None:
        """What is given to the stream from now on happens after the event as it was last recorded."""
        ...

    def event_create(self) -> int:
        """An event without timing."""
        ...

    def event_destroy(self, event: int) -> None: ...

    def event_record(self, event: int, stream: int) -> None:
        """The event happens when the stream has done what it was given so far."""
        ...

    def event_query(self, event: int) -> bool:
        """Whether it has happened."""
        ...

    def event_synchronize(self, event: int) -> None:
        """Block until it has happened."""
        ...

    def close(self) -> None:
        """Let go of the context."""
        ...
