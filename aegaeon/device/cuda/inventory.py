"""Which GPUs there are for this process and those that it starts. ``CUDA_VISIBLE_DEVICES`` counts, and a MIG slice is a
GPU like any other, but for one thing: CUDA shows a process the first slice of that list only. The others are each for
a process of its own, which is given that slice alone to see.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from aegaeon.device.cuda.bindings import Bindings, BindingsDriver, load_bindings

VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"
_SLICE = "MIG-"


@dataclass(frozen=True, slots=True)
class Gpu:
    """A device as the driver describes it; ``driver_version`` is that of CUDA, such as 13.2.

    ``ordinal``: its number for a process that sees what this one does; or for one that is given ``visible`` to see.
    """

    ordinal: int
    name: str
    free_bytes: int
    total_bytes: int
    granularity_bytes: int
    driver_version: str
    visible: str = ""


def find_gpus(
    open_bindings: Callable[[], Bindings] = lambda: Bindings(load_bindings()),
    environment: Mapping[str, str] = os.environ,
) -> tuple[Gpu, ...]:
    """Every GPU that may be used. Raises ``NoCudaError`` where there is none, with the reason.

    Slices that this process cannot see are taken to be like the one that it sees.
    """
    bindings = open_bindings()
    major, minor = divmod(bindings.driver_version, 1000)
    seen = tuple(_gpu(bindings, ordinal, f"{major}.{minor // 10}") for ordinal in range(bindings.devices))
    slices = [name for name in _listed(environment) if name.startswith(_SLICE)]
    if len(seen) == 1 and len(slices) > 1:
        return tuple(replace(seen[0], visible=name) for name in slices)
    return seen


def unseen_devices(gpus: int, environment: Mapping[str, str] = os.environ) -> str:
    """What to know where ``CUDA_VISIBLE_DEVICES`` lists more devices than were found; empty where it does not."""
    listed = len(_listed(environment))
    if listed <= gpus:
        return ""
    return (
        f"{VISIBLE_DEVICES} lists {listed} devices, of which {gpus} can be used: "
        "CUDA stops at the first that is not there"
    )


def _listed(environment: Mapping[str, str]) -> list[str]:
    return [name.strip() for name in environment.get(VISIBLE_DEVICES, "").split(",") if name.strip()]


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
