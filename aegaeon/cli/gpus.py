"""The GPUs of this machine, looked for only where there is a driver: finding them brings in NVIDIA's bindings."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from typing import TYPE_CHECKING

from aegaeon.settings.machine import Machine, read_machine

if TYPE_CHECKING:
    from aegaeon.device.cuda.inventory import Gpu

_DRIVER = "libcuda.so.1"


def gpus() -> tuple[tuple[Gpu, ...], str]:
    """All GPUs that this process may use; where there is none, the reason."""
    try:
        ctypes.CDLL(_DRIVER)
    except OSError:
        return (), "there is no NVIDIA driver here"
    from aegaeon.device.cuda.driver import CudaError, NoCudaError
    from aegaeon.device.cuda.inventory import find_gpus

    try:
        return find_gpus(), ""
    except (NoCudaError, CudaError) as error:
        return (), str(error)


def machine_with_gpus() -> Machine:
    """This machine, with the free memory of its GPUs."""
    found, problem = gpus()
    return replace(read_machine(), gpu_bytes=tuple(gpu.free_bytes for gpu in found), gpu_problem=problem)
