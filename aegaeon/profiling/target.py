"""What is profiled: a device as an instance uses it, and what latency profiles call it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aegaeon.device.common.local_cpu import local_cpu
from aegaeon.device.cuda.inventory import Gpu, kernel_driver
from aegaeon.latency.online.node_device import gpu_name

_CUDA_PAGE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Target:
    """``name``: of the folder of its profiles; ``description``: for people. ``kind``: as of ``make_device``.

    ``memory_bytes`` of device pages that weights and KV are copied into; None: they are used where they lie in the
    host's memory. ``threads``: compute threads of the host.
    """

    name: str
    description: str
    kind: str
    threads: int
    memory_bytes: int | None = None
    page_bytes: int = 2 << 20

    @property
    def copying(self) -> bool:
        """Whether weights and KV move to it."""
        return self.memory_bytes is not None


def cpu_target(threads: int) -> Target:
    """This machine's processor, with weights and KV where they lie."""
    device = local_cpu(threads)
    return Target(device.name, device.description, "cpu", threads)


def copying_target(threads: int, memory_bytes: int) -> Target:
    """This machine's processor, worked with as if it were a GPU."""
    device = local_cpu(threads, copying=True)
    return Target(device.name, device.description, "cpu", threads, memory_bytes)


def gpu_target(gpus: Sequence[Gpu], threads: int, memory_bytes: int) -> Target:
    """The first GPU; ``memory_bytes`` of it may be taken."""
    gpu, driver = gpus[0], kernel_driver()
    description = f"{gpu.name}, driver {driver + ' ' if driver else ''}for CUDA {gpu.driver_version}"
    return Target(gpu_name(gpu.name), description, "cuda", threads, memory_bytes, _CUDA_PAGE_BYTES)
