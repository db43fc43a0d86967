"""Memory files that processes share by handing on a descriptor.

A memory file has no name in any folder, so nothing is left behind when its last user dies. Its pages count as shared
memory of the control group that touches them first.
"""

from __future__ import annotations

import fcntl
import os

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
            f"{purpose} needs {gib(size_bytes)} of shared memory, but {gib(host.available_bytes)} are available "
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
        raise SharedMemoryError(f"{name}: no {gib(size_bytes)} of shared memory ({error}): lower {flag}") from error
    return fd


def gib(size_bytes: int) -> str:
    """A size as an operator reads it, in GiB."""
    return f"{size_bytes / 2**30:.2f} GiB"
