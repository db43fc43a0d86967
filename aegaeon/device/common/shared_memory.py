"""Memory files that processes share by handing on a descriptor, and tensors over them.

A memory file has no name in any folder, so nothing is left behind when its last user dies. Its pages count as shared
memory of the control group that touches them first.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import weakref

import torch

from aegaeon.device.common import virtual_memory
from aegaeon.device.common.host_memory import HostMemory, host_memory


class SharedMemoryError(Exception):
    """Memory cannot be had, or a memory file is not what it should be; the message says what to do about it."""


def require_memory(purpose: str, size_bytes: int, flag: str, host: HostMemory | None = None) -> None:
    """Raise ``SharedMemoryError`` where the machine could not back ``size_bytes`` more; ``flag`` is what to lower.

    Untouched parts of memory files are not counted as used: who makes several should ask for their sum beforehand.
    """
    host = host_memory() if host is None else host
    if size_bytes > host.available_bytes:
        raise SharedMemoryError(
            f"{purpose} needs {_gib(size_bytes)} of shared memory, but {_gib(host.available_bytes)} are available "
            f"(says {host.source}): lower {flag}"
        )


def create_memfd(name: str, size_bytes: int, *, flag: str, prefault: bool = False) -> int:
    """Make a memory file of zeros and return its descriptor, which the caller closes.

    Its size is sealed, so that nobody who maps it can be killed by another's truncation. Memory is taken when it is
    touched, or now where ``prefault``. Raises ``SharedMemoryError`` where there is too little; ``flag`` names what the
    user should lower then.
    """
    require_memory(name, size_bytes, flag)
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size_bytes)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        if prefault and size_bytes:
            os.posix_fallocate(fd, 0, size_bytes)
    except OSError as error:
        os.close(fd)
        raise SharedMemoryError(f"{name}: no {_gib(size_bytes)} of shared memory ({error}): lower {flag}") from error
    return fd


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
        raise SharedMemoryError(f"cannot map {_gib(size_bytes)} of shared memory: {error}") from error
    buffer = (ctypes.c_uint8 * size_bytes).from_address(address)
    weakref.finalize(buffer, virtual_memory.release, address, size_bytes).atexit = False
    return torch.frombuffer(buffer, dtype=torch.uint8)


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.2f} GiB"
