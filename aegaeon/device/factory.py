"""Makes a device by the name of its kind."""

from __future__ import annotations

from functools import partial

from aegaeon.device.common.errors import DeviceError
from aegaeon.device.common.protocol import Device
from aegaeon.device.cpu.device import CpuDevice
from aegaeon.device.cpu.lazy import LazyDevice
from aegaeon.device.cuda import torch_streams as cuda_torch
from aegaeon.device.cuda.bindings import Bindings, BindingsDriver, load_bindings
from aegaeon.device.cuda.device import CudaDevice
from aegaeon.device.cuda.memory import DlDeviceType, bytes_at

KINDS = ("cpu", "lazy", "cuda")


def make_device(
    kind: str,
    *,
    pages: int,
    page_bytes: int,
    huge_pages: bool = True,
    memory_flag: str = "--device-memory",
    ordinal: int = 0,
) -> Device:
    """A device of ``pages`` pages of ``page_bytes`` each; the caller closes it.

    ``memory_flag`` is what an error about too little memory tells the user to lower. ``lazy`` is the CPU with copies
    that land late, for tests. ``ordinal``: which GPU. Raises ``DeviceError`` for a kind that there is not (here),
    ``SharedMemoryError`` where there is too little memory.
    """
    match kind:
        case "cpu":
            return CpuDevice(pages, page_bytes, huge_pages=huge_pages, memory_flag=memory_flag)
        case "lazy":
            return LazyDevice(CpuDevice(pages, page_bytes, huge_pages=huge_pages, memory_flag=memory_flag))
        case "cuda":
            return make_cuda_device(ordinal, pages=pages, page_bytes=page_bytes, memory_flag=memory_flag)
        case _:
            raise DeviceError(f"there is no device {kind!r}: use one of {', '.join(KINDS)}")


def make_cuda_device(ordinal: int, *, pages: int, page_bytes: int, memory_flag: str) -> CudaDevice:
    """GPU ``ordinal`` of those that the process may see; torch computes on it from now on, in this thread."""
    driver = BindingsDriver(Bindings(load_bindings()), ordinal)
    try:
        return CudaDevice(
            driver,
            pages,
            page_bytes,
            bytes_at=partial(bytes_at, device_type=DlDeviceType.CUDA, ordinal=ordinal),
            torch_device=cuda_torch.use(ordinal),
            compute_stream=partial(cuda_torch.current_stream, ordinal),
            memory_flag=memory_flag,
        )
    except DeviceError:
        driver.close()
        raise
