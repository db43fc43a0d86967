"""A tensor of bytes over memory that is not torch's, on a GPU or on the host, without a copy.

Handed over as a DLPack capsule (https://dmlc.github.io/dlpack), the one way in that asks nothing of the memory: it need
not be mapped, nor be known to CUDA's runtime. The capsule's record is freed by the C library itself, so that a tensor
may go at any time, in any thread.
"""

from __future__ import annotations

import ctypes
from enum import IntEnum

import torch
from torch.utils.dlpack import from_dlpack

_CAPSULE_NAME = b"dltensor"  # capsules keep a pointer to it
_UNSIGNED = 1


class DlDeviceType(IntEnum):
    """DLPack's numbers."""

    CPU = 1
    CUDA = 2


class _DlTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("dtype_code", ctypes.c_uint8),
        ("dtype_bits", ctypes.c_uint8),
        ("dtype_lanes", ctypes.c_uint16),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
    )


class _DlManagedTensor(ctypes.Structure):
    """The last field is no part of DLPack's: the shape lies behind the record, to be freed with it."""

    _fields_ = (
        ("tensor", _DlTensor),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("size", ctypes.c_int64),
    )


_libc = ctypes.CDLL(None)
_libc.malloc.restype = ctypes.c_void_p
_libc.malloc.argtypes = [ctypes.c_size_t]
_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


def bytes_at(address: int, size_bytes: int, device_type: DlDeviceType, ordinal: int = 0) -> torch.Tensor:
    """The bytes from ``address`` on: uint8 ``[size_bytes]`` on the host or on GPU ``ordinal``."""
    place = _libc.malloc(ctypes.sizeof(_DlManagedTensor))
    if not place:
        raise MemoryError("no memory for a tensor's record")
    record = _DlManagedTensor.from_address(place)
    record.size = size_bytes
    shape = place + _DlManagedTensor.size.offset
    record.tensor = _DlTensor(address, device_type, ordinal, 1, _UNSIGNED, 8, 1, shape, None, 0)
    record.context = None
    record.deleter = ctypes.cast(_libc.free, ctypes.c_void_p).value
    tensor: torch.Tensor = from_dlpack(_new_capsule(place, _CAPSULE_NAME, None))
    return tensor
