"""Reading and writing the safetensors container: what lies where in a file.

Files come from outside and are not trusted: a truncated or lying one is a ``CheckpointError``. Files of ours have every
tensor's data aligned, which the format does not ask for: it forbids holes, so gaps are filled with small tensors named
``__pad_0``, ``__pad_1``, ...

Does not know: models, which tensors belong together.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ALIGNMENT_BYTES = 256
PADDING_PREFIX = "__pad_"
_MAX_HEADER_BYTES = 100_000_000
_LENGTH_BYTES = 8

_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "C64": torch.complex64,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class CheckpointError(ValueError):
    """A model directory cannot be used; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies: ``start_byte`` counts from the beginning of ``file``."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start_byte: int
    size_bytes: int


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Every tensor of a file, padding left out. Raises ``CheckpointError`` where header and file do not agree."""
    try:
        with file.open("rb") as stream:
            file_bytes = os.fstat(stream.fileno()).st_size
            length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
            if not 2 <= length <= min(_MAX_HEADER_BYTES, file_bytes - _LENGTH_BYTES):
                raise _damaged(file, f"it claims a header of {length} bytes")
            header = json.loads(stream.read(length))
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        if isinstance(error, CheckpointError):
            raise
        raise _damaged(file, "its header is not JSON") from error
    data_start = _LENGTH_BYTES + length
    entries = header.items() if isinstance(header, dict) else ()
    tensors = {name: _stored(file, name, entry, data_start) for name, entry in entries if name != "__metadata__"}
    end_byte = max((tensor.start_byte + tensor.size_bytes for tensor in tensors.values()), default=data_start)
    if end_byte != file_bytes:
        raise _damaged(file, f"its header describes {end_byte} bytes, the file has {file_bytes}")
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(PADDING_PREFIX)}


def _stored(file: Path, name: str, entry: Any, data_start: int) -> StoredTensor:
    try:
        dtype, shape = _DTYPES[entry["dtype"]], tuple(int(size) for size in entry["shape"])
        begin, end = (int(offset) for offset in entry["data_offsets"])
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(file, f"its entry for {name!r} cannot be understood") from error
    elements = 1
    for size in shape:
        elements *= size
    if min(shape, default=0) < 0 or begin < 0 or end - begin != elements * dtype.itemsize:
        raise _damaged(file, f"shape and bytes of {name!r} do not agree")
    return StoredTensor(file, dtype, shape, data_start + begin, end - begin)


def _damaged(file: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{file} is not a whole safetensors file: {what}; download or write it again")


def write_aligned(file: Path, tensors: Mapping[str, Tensor], progress: Callable[[int], None] | None = None) -> None:
    """Write tensors in the mapping's order, each one's data at a multiple of 256 bytes from the start of the file.

    ``progress`` is told the bytes written so far, after each tensor. The data is on disk on return.
    """
    layout = list(_layout(tensors))
    header = _header(layout)
    with file.open("wb") as stream:
        stream.write(len(header).to_bytes(_LENGTH_BYTES, "little") + header)
        for _, tensor in layout:
            stream.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
            if progress is not None:
                progress(stream.tell())
        stream.flush()
        os.fsync(stream.fileno())


def _layout(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The tensors, with padding between them where the next would not be aligned."""
    offset_bytes = paddings = 0
    for name, tensor in tensors.items():
        gap_bytes = -offset_bytes % ALIGNMENT_BYTES
        if gap_bytes and tensor.nbytes:
            yield f"{PADDING_PREFIX}{paddings}", torch.zeros(gap_bytes, dtype=torch.uint8)
            paddings, offset_bytes = paddings + 1, offset_bytes + gap_bytes
        yield name, tensor
        offset_bytes += tensor.nbytes


def _header(layout: Iterable[tuple[str, Tensor]]) -> bytes:
    """The header's JSON, ended with spaces (the format allows them) so that the data begins aligned."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, tensor in layout:
        end = begin + tensor.nbytes
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    return text + b" " * (-(len(text) + _LENGTH_BYTES) % ALIGNMENT_BYTES)
