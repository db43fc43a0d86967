"""Tensors over memory files that processes share."""

from __future__ import annotations

import ctypes
import os
import weakref

import torch

from aegaeon.device.common import virtual_memory
from aegaeon.device.common.shared_memory import SharedMemoryError, gib


def map_fd(fd: int, size_bytes: int, *, writable: bool) -> torch.Tensor:
    """Map the first ``size_bytes`` of a memory file as a uint8 tensor; the descriptor may be closed afterwards.

    The mapping goes with the last view of the tensor. Writing to one that is not ``writable`` is a segmentation fault:
    torch has no read-only tensors.
    """
    file_bytes = os.fstat(fd).st_size
    if not 0 < size_bytes <= file_bytes:
        raise SharedMemoryError(f"cannot map {size_bytes} bytes of a memory file of {file_bytes}: pass its real size")
    try:
        address = virtual_memory.map_anywhere(size_bytes, fd, writable=writable)
    except OSError as error:
        raise SharedMemoryError(f"cannot map {gib(size_bytes)} of shared memory: {error}") from error
    buffer = (ctypes.c_uint8 * size_bytes).from_address(address)
    weakref.finalize(buffer, virtual_memory.release, address, size_bytes).atexit = False
    return torch.frombuffer(buffer, dtype=torch.uint8)
