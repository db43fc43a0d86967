"""``CudaDriver`` through NVIDIA's own bindings (``cuda.bindings``, which CUDA builds of torch bring along).

This is the only place that imports them; they need the driver's library only when they are called.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from aegaeon.device.cuda.driver import CudaError, CudaMemory, NoCudaError

_BATCHES_SINCE = 12080
"""The driver version (CUDA 12.8) from which there is ``cuMemcpyBatchAsync``."""

_NOT_READY = "CUDA_ERROR_NOT_READY"
_NAME_BYTES = 128


def load_bindings() -> Any:
    """The bindings' module of the driver API. Raises ``NoCudaError`` where they are not installed."""
    try:
        return importlib.import_module("cuda.bindings.driver")
    except ImportError as error:
        raise NoCudaError(
            f"cuda.bindings cannot be imported ({error}): python -m pip install 'aegaeon[cuda]'"
        ) from error


class Bindings:
    """The driver API as functions that raise: ``call("cuInit", 0)`` gives what comes after the error code."""

    def __init__(self, api: Any) -> None:
        self.api = api
        self._success = api.CUresult.CUDA_SUCCESS
        try:
            self.call("cuInit", 0)
        except CudaError as error:
            raise NoCudaError(f"CUDA cannot be used: {error}") from error
        except (RuntimeError, ImportError, OSError) as error:  # how the bindings say that there is no libcuda
            reason = str(error).splitlines()[0].rstrip(".")
            raise NoCudaError(f"there is no NVIDIA driver here ({reason})") from error

    def call(self, name: str, *args: Any) -> Any:
        """The result, or a tuple of results; None where there is none."""
        code, *results = getattr(self.api, name)(*args)
        if code != self._success:
            raise CudaError(name, code.name, self._explain(code))
        return results[0] if len(results) == 1 else tuple(results) or None

    @property
    def devices(self) -> int:
        """How many devices this process may see."""
        try:
            return int(self.call("cuDeviceGetCount"))
        except CudaError as error:
            raise NoCudaError(f"CUDA finds no device: {error}") from error

    @property
    def driver_version(self) -> int:
        """The version of CUDA that the driver supports: 13020 is 13.2."""
        return int(self.call("cuDriverGetVersion"))

    def _explain(self, code: Any) -> str:
        _, text = self.api.cuGetErrorString(code)
        return text.decode() if isinstance(text, bytes) else ""


class BindingsDriver:
    """The driver's calls for device ``ordinal``. Raises ``NoCudaError`` where there is no such device."""

    def __init__(self, bindings: Bindings, ordinal: int) -> None:
        count = bindings.devices
        if not 0 <= ordinal < count:
            raise NoCudaError(f"there is no CUDA device {ordinal}: this process may see {count} (CUDA_VISIBLE_DEVICES)")
        self._api, self._call = bindings.api, bindings.call
        self._ordinal = ordinal
        self._device = self._call("cuDeviceGet", ordinal)
        self._call("cuCtxSetCurrent", self._call("cuDevicePrimaryCtxRetain", self._device))
        self._has_batches = bindings.driver_version >= _BATCHES_SINCE and hasattr(self._api, "cuMemcpyBatchAsync")
        self._property = self._allocation()
        self._closed = False

    @property
    def ordinal(self) -> int:
        return self._ordinal

    @property
    def name(self) -> str:
        text: bytes = self._call("cuDeviceGetName", _NAME_BYTES, self._device)
        return text.split(b"\0")[0].decode()

    @property
    def granularity_bytes(self) -> int:
        flags = self._api.CUmemAllocationGranularity_flags
        minimum = flags.CU_MEM_ALLOC_GRANULARITY_MINIMUM
        return int(self._call("cuMemGetAllocationGranularity", self._property, minimum))

    @property
    def has_batches(self) -> bool:
        return self._has_batches

    def mem_get_info(self) -> CudaMemory:
        free_bytes, total_bytes = self._call("cuMemGetInfo")
        return CudaMemory(int(free_bytes), int(total_bytes))

    def mem_address_reserve(self, size_bytes: int) -> int:
        return int(self._call("cuMemAddressReserve", size_bytes, 0, 0, 0))

    def mem_address_free(self, address: int, size_bytes: int) -> None:
        self._call("cuMemAddressFree", address, size_bytes)

    def mem_create(self, size_bytes: int) -> int:
        return int(self._call("cuMemCreate", size_bytes, self._property, 0))

    def mem_release(self, handle: int) -> None:
        self._call("cuMemRelease", handle)

    def mem_map(self, address: int, size_bytes: int, handle: int) -> None:
        self._call("cuMemMap", address, size_bytes, 0, handle, 0)

    def mem_unmap(self, address: int, size_bytes: int) -> None:
        self._call("cuMemUnmap", address, size_bytes)

    def mem_set_access(self, address: int, size_bytes: int) -> None:
        access = self._api.CUmemAccessDesc()
        access.location = self._property.location
        access.flags = self._api.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
        self._call("cuMemSetAccess", address, size_bytes, [access], 1)

    def mem_host_register(self, address: int, size_bytes: int) -> None:
        self._call("cuMemHostRegister", address, size_bytes, self._api.CU_MEMHOSTREGISTER_PORTABLE)

    def mem_host_unregister(self, address: int) -> None:
        self._call("cuMemHostUnregister", address)

    def memcpy_async(self, destination: int, source: int, size_bytes: int, stream: int) -> None:
        self._call("cuMemcpyAsync", destination, source, size_bytes, stream)

    def memcpy_batch_async(
        self, destinations: Sequence[int], sources: Sequence[int], sizes_bytes: Sequence[int], stream: int
    ) -> None:
        pointer = self._api.CUdeviceptr
        attributes = self._api.CUmemcpyAttributes()
        attributes.srcAccessOrder = self._api.CUmemcpySrcAccessOrder.CU_MEMCPY_SRC_ACCESS_ORDER_STREAM
        self._call(
            "cuMemcpyBatchAsync",
            [pointer(address) for address in destinations],
            [pointer(address) for address in sources],
            list(sizes_bytes),
            len(sizes_bytes),
            [attributes],
            [0],
            1,
            stream,
        )

    def stream_create(self) -> int:
        return int(self._call("cuStreamCreate", self._api.CUstream_flags.CU_STREAM_NON_BLOCKING))

    def stream_destroy(self, stream: int) -> None:
        self._call("cuStreamDestroy", stream)

    def stream_wait_event(self, stream: int, event: int) -> None:
        self._call("cuStreamWaitEvent", stream, event, 0)

    def event_create(self) -> int:
        return int(self._call("cuEventCreate", self._api.CUevent_flags.CU_EVENT_DISABLE_TIMING))

    def event_destroy(self, event: int) -> None:
        self._call("cuEventDestroy", event)

    def event_record(self, event: int, stream: int) -> None:
        self._call("cuEventRecord", event, stream)

    def event_query(self, event: int) -> bool:
        try:
            self._call("cuEventQuery", event)
        except CudaError as error:
            if error.code == _NOT_READY:
                return False
            raise
        return True

    def event_synchronize(self, event: int) -> None:
        self._call("cuEventSynchronize", event)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._call("cuCtxSetCurrent", None)  # a context that went must not stay current
            self._call("cuDevicePrimaryCtxRelease", self._device)

    def _allocation(self) -> Any:
        """What physical memory is to be like: pinned down on this device, for this process."""
        wanted = self._api.CUmemAllocationProp()
        wanted.type = self._api.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        wanted.location.type = self._api.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        wanted.location.id = self._ordinal
        return wanted
