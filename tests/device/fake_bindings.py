"""``cuda.bindings.driver`` over the fake driver: its functions with their number of arguments, its own classes.

The bindings come with CUDA builds of torch, and need no driver to say what their functions take.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from aegaeon.device.cuda.bindings import load_bindings
from aegaeon.device.cuda.driver import CudaError
from tests.device.fake_cuda_driver import FakeCudaDriver

_CODES = {"RACE": "CUDA_ERROR_UNKNOWN"}


class FakeBindings:
    """Anything the module has; functions that the backend calls are the fake's."""

    def __init__(self, driver: FakeCudaDriver, devices: int = 1) -> None:
        self._real = load_bindings()
        self._driver = driver
        self.used: list[int] = []  # devices whose context was asked for
        self._functions: dict[str, Callable[..., Any]] = {
            "cuInit": lambda flags: None,
            "cuDeviceGetCount": lambda: devices,
            "cuDriverGetVersion": lambda: 13000 if driver.has_batches else 12040,
            "cuDeviceGet": self._real.CUdevice,
            "cuDevicePrimaryCtxRetain": self._retain,
            "cuCtxSetCurrent": lambda context: None,
            "cuDevicePrimaryCtxRelease": lambda device: driver.close() if devices == 1 else None,
            "cuDeviceGetName": lambda size, device: driver.name.encode().ljust(size, b"\0"),
            "cuMemGetAllocationGranularity": self._granularity,
            "cuMemGetInfo": lambda: (driver.mem_get_info().free_bytes, driver.mem_get_info().total_bytes),
            "cuMemAddressReserve": self._reserve,
            "cuMemAddressFree": driver.mem_address_free,
            "cuMemCreate": self._create,
            "cuMemRelease": driver.mem_release,
            "cuMemMap": self._map,
            "cuMemUnmap": driver.mem_unmap,
            "cuMemSetAccess": self._set_access,
            "cuMemHostRegister": lambda address, size, flags: driver.mem_host_register(address, size),
            "cuMemHostUnregister": driver.mem_host_unregister,
            "cuMemcpyAsync": driver.memcpy_async,
            "cuMemcpyBatchAsync": self._copy_batch,
            "cuStreamCreate": self._create_stream,
            "cuStreamDestroy": driver.stream_destroy,
            "cuStreamWaitEvent": lambda stream, event, flags: driver.stream_wait_event(stream, event),
            "cuEventCreate": lambda flags: self._real.CUevent(driver.event_create()),
            "cuEventDestroy": driver.event_destroy,
            "cuEventRecord": driver.event_record,
            "cuEventQuery": self._query,
            "cuEventSynchronize": driver.event_synchronize,
        }

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._real, name)
        if name == "cuGetErrorString":
            return lambda code: (self._real.CUresult.CUDA_SUCCESS, f"the words for {code.name}".encode())
        if not name.startswith("cu"):
            return real
        function, parameters = self._functions[name], _parameters(real)

        def call(*args: Any) -> tuple[Any, ...]:
            assert len(args) == parameters, f"{name} takes {parameters} arguments"
            try:
                result = function(*args)
            except CudaError as error:
                return (getattr(self._real.CUresult, _CODES.get(error.code, error.code)),)
            ok = self._real.CUresult.CUDA_SUCCESS
            return (ok, *result) if isinstance(result, tuple) else (ok,) if result is None else (ok, result)

        return call

    def _retain(self, device: Any) -> Any:
        self.used.append(int(device))
        return self._real.CUcontext(7)

    def _granularity(self, wanted: Any, flag: Any) -> int:
        self._require_on_device(wanted)
        return self._driver.granularity_bytes

    def _reserve(self, size: int, alignment: int, address: int, flags: int) -> Any:
        return self._real.CUdeviceptr(self._driver.mem_address_reserve(size))

    def _create(self, size: int, wanted: Any, flags: int) -> Any:
        self._require_on_device(wanted)
        return self._real.CUmemGenericAllocationHandle(self._driver.mem_create(size))

    def _map(self, address: int, size: int, offset: int, handle: int, flags: int) -> None:
        assert (offset, flags) == (0, 0)
        self._driver.mem_map(address, size, handle)

    def _set_access(self, address: int, size: int, access: list[Any], count: int) -> None:
        (wanted,) = access
        assert count == 1
        assert wanted.location.type == self._real.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        assert wanted.flags == self._real.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
        self._driver.mem_set_access(address, size)

    def _copy_batch(
        self,
        destinations: list[Any],
        sources: list[Any],
        sizes: list[int],
        count: int,
        attributes: list[Any],
        indices: list[int],
        attribute_count: int,
        stream: int,
    ) -> None:
        assert all(isinstance(pointer, self._real.CUdeviceptr) for pointer in (*destinations, *sources))
        assert (count, indices, attribute_count) == (len(sizes), [0], 1)
        order = self._real.CUmemcpySrcAccessOrder.CU_MEMCPY_SRC_ACCESS_ORDER_STREAM
        assert [attribute.srcAccessOrder for attribute in attributes] == [order]
        self._driver.memcpy_batch_async([int(d) for d in destinations], [int(s) for s in sources], sizes, stream)

    def _create_stream(self, flags: Any) -> Any:
        assert flags == self._real.CUstream_flags.CU_STREAM_NON_BLOCKING
        return self._real.CUstream(self._driver.stream_create())

    def _query(self, event: int) -> None:
        if not self._driver.event_query(event):
            raise CudaError("cuEventQuery", "CUDA_ERROR_NOT_READY")

    def _require_on_device(self, wanted: Any) -> None:
        assert wanted.type == self._real.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        assert wanted.location.type == self._real.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        assert wanted.location.id == self.used[-1]


def _parameters(function: Any) -> int:
    """How many parameters the first line of a function's documentation lists."""
    listed = re.fullmatch(r"\w+\((.*)\)", function.__doc__.splitlines()[0])
    assert listed is not None
    inside = re.sub(r"\[[^]]*\]", "", listed[1])
    return len(inside.split(",")) if inside else 0
