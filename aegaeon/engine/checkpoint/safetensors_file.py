"""Writing safetensors files in which every tensor's data is aligned.

The format does not ask for alignment, and forbids holes, so gaps are filled with small tensors named ``__pad_0``,
``__pad_1``, ... Files are read by ``quick_model_loader``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from quick_model_loader.torch_view import DTYPES, torch_dtype
from torch import Tensor

ALIGNMENT_BYTES = 256
PADDING_PREFIX = "__pad_"
_LENGTH_BYTES = 8

_NAMES = {torch_dtype(name): name for name in DTYPES}


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
