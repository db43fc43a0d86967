"""Tensors of torch over an entry's memory.

Torch is imported by whoever asks for a tensor; the loader itself does not need it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from quick_model_loader.errors import DtypeError

if TYPE_CHECKING:
    from typing_extensions import Buffer

DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "C64": "complex64",
    "F64": "float64",
    "I64": "int64",
    "U64": "uint64",
    "F4": "float4_e2m1fn_x2",
}
_PACKED = {"F4": 2}  # elements of the format to one of torch's


def torch_dtype(name: str) -> torch.dtype | None:
    """The type that torch has for a safetensors dtype; None where it has none."""
    found = getattr(torch, DTYPES[name], None) if name in DTYPES else None
    return found if isinstance(found, torch.dtype) else None


def tensor(memory: Buffer, name: str, dtype: str, shape: tuple[int, ...], offset: int) -> torch.Tensor:
    """A tensor over `memory` from byte `offset` on; it keeps `memory` alive.

    `dtype` and `shape` are the file's; the last dimension of a packed type is counted in whole bytes, as torch does.
    Raises `DtypeError` where torch has no such type.
    """
    element = torch_dtype(dtype)
    per_element = _PACKED.get(dtype, 1)
    if element is None or (per_element > 1 and (not shape or shape[-1] % per_element)):
        raise DtypeError(f"tensor {name!r}: torch has no type for {dtype} of shape {shape}; use Entry.bytes instead")
    if per_element > 1:
        shape = (*shape[:-1], shape[-1] // per_element)
    count = math.prod(shape)
    if count == 0:
        # frombuffer refuses empty views, and there is nothing to keep alive.
        return torch.empty(shape, dtype=element)
    return torch.frombuffer(memory, dtype=element, count=count, offset=offset).view(shape)
