"""Which GPUs this process may use. ``CUDA_VISIBLE_DEVICES`` counts, and a MIG slice is a GPU like any other.

Does not know: torch, what GPUs are used for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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


def _gpu(bindings: Bindings, ordinal: int, driver_version: str) -> Gpu:
    driver = BindingsDriver(bindings, ordinal)
    try:
        memory = driver.mem_get_info()
        return Gpu(
            ordinal, driver.name, memory.free_bytes, memory.total_bytes, driver.granularity_bytes, driver_version
        )
    finally:
        driver.close()
