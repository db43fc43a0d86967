"""Makes a device by the name of its kind.

Does not know: which kind is best for a machine.
"""

from __future__ import annotations

from aegaeon.device.cpu import CpuDevice
from aegaeon.device.lazy import LazyDevice
from aegaeon.device.protocol import Device, DeviceError

KINDS = ("cpu", "lazy", "cuda")


def make_device(
    kind: str, *, pages: int, page_bytes: int, huge_pages: bool = True, memory_flag: str = "--device-bytes"
) -> Device:
    """A device of ``pages`` pages of ``page_bytes`` each; the caller closes it.

    ``memory_flag`` is what an error about too little memory tells the user to lower. ``lazy`` is the CPU with copies
    that land late, for tests. Raises ``DeviceError`` for a kind that there is not, ``SharedMemoryError`` where there is
    too little memory.
    """
    match kind:
        case "cpu":
            return CpuDevice(pages, page_bytes, huge_pages=huge_pages, memory_flag=memory_flag)
        case "lazy":
            return LazyDevice(CpuDevice(pages, page_bytes, huge_pages=huge_pages, memory_flag=memory_flag))
        case "cuda":
            raise DeviceError("this version has no CUDA backend yet: use device cpu")
        case _:
            raise DeviceError(f"there is no device {kind!r}: use one of {', '.join(KINDS)}")
