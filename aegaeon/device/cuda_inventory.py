"""Which GPUs this process may use. ``CUDA_VISIBLE_DEVICES`` counts, and a MIG slice is a GPU like any other.

Does not know: torch, what GPUs are used for.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from aegaeon.device.cuda_bindings import Bindings, BindingsDriver, load_bindings


@dataclass(frozen=True, slots=True)
class Gpu:
    """A device as the driver describes it; ``driver_version`` is that of CUDA, such as 13.2."""

    ordinal: int
    name: str
    free_bytes: int
    total_bytes: int
    granularity_bytes: int
    driver_version: str


def find_gpus(open_bindings: Callable[[], Bindings] = lambda: Bindings(load_bindings())) -> tuple[Gpu, ...]:
    """Every GPU that may be used. Raises ``NoCudaError`` where there is none, with the reason."""
    bindings = open_bindings()
    major, minor = divmod(bindings.driver_version, 1000)
    return tuple(_gpu(bindings, ordinal, f"{major}.{minor // 10}") for ordinal in range(bindings.devices))


def kernel_driver(file: Path = Path("/proc/driver/nvidia/version")) -> str:
    """The version of NVIDIA's kernel module, such as 580.65.06; empty where there is none."""
    found = re.search(r"\s(\d+\.\d+(\.\d+)?)\s", file.read_text()) if file.exists() else None
    return found[1] if found else ""


def _gpu(bindings: Bindings, ordinal: int, driver_version: str) -> Gpu:
    driver = BindingsDriver(bindings, ordinal)
    try:
        memory = driver.mem_get_info()
        return Gpu(
            ordinal, driver.name, memory.free_bytes, memory.total_bytes, driver.granularity_bytes, driver_version
        )
    finally:
        driver.close()
