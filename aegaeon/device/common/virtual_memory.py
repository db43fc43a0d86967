"""Address ranges and mappings of this process: mmap, munmap and madvise through the C library.

Python's own ``mmap`` cannot place a mapping at an address, nor reserve addresses without memory. Sizes and addresses
are multiples of the system's page size. Errors are ``OSError`` with the C library's errno.

Linux only.
"""

from __future__ import annotations

import ctypes
import mmap
import os

HUGE_PAGE_BYTES = 2 << 20
_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000
_MADV_COLLAPSE = 25
_PROT_NONE = 0
_MAP_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def reserve(size_bytes: int) -> int:
    """Addresses without memory, aligned to huge pages; touching one is a segmentation fault."""
    spare_bytes = HUGE_PAGE_BYTES
    start = _mmap(0, size_bytes + spare_bytes, _PROT_NONE, _reserving(0), -1, 0)
    address = -(-start // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
    head_bytes = address - start
    if head_bytes:
        release(start, head_bytes)
    if spare_bytes - head_bytes:
        release(address + size_bytes, spare_bytes - head_bytes)
    return address


def map_at(address: int, size_bytes: int, fd: int, offset_bytes: int, *, populate: bool) -> None:
    """Put bytes of a file behind reserved addresses, in place of what is there; ``populate`` its page tables too."""
    flags = mmap.MAP_SHARED | _MAP_FIXED | (mmap.MAP_POPULATE if populate else 0)
    _mmap(address, size_bytes, mmap.PROT_READ | mmap.PROT_WRITE, flags, fd, offset_bytes)


def map_anywhere(size_bytes: int, fd: int, *, writable: bool) -> int:
    """Map a file from its beginning; returns the address."""
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    return _mmap(0, size_bytes, protection, mmap.MAP_SHARED, fd, 0)


def unmap_at(address: int, size_bytes: int) -> None:
    """Take the memory behind addresses away, but keep them reserved."""
    _mmap(address, size_bytes, _PROT_NONE, _reserving(_MAP_FIXED), -1, 0)


def release(address: int, size_bytes: int) -> None:
    """Give addresses back, with whatever is mapped there."""
    if _libc.munmap(address, size_bytes) != 0:
        raise _last_error()


def collapse(address: int, size_bytes: int) -> bool:
    """Turn mapped memory into huge pages now (Linux 6.1); False where the kernel would or could not.

    Every huge page must have been touched before. Works on shared memory even where the system's setting for
    transparent huge pages in shared memory is "never".
    """
    return bool(_libc.madvise(address, size_bytes, _MADV_COLLAPSE) == 0)


def _reserving(flags: int) -> int:
    return mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE | flags


def _mmap(address: int, size_bytes: int, protection: int, flags: int, fd: int, offset_bytes: int) -> int:
    mapped: int | None = _libc.mmap(address, size_bytes, protection, flags, fd, offset_bytes)
    if mapped is None or mapped == _MAP_FAILED:
        raise _last_error()
    return mapped


def _last_error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
