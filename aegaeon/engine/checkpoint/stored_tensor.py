"""The tensors of a checkpoint on disk: where each lies, of what type and shape. No data is read.

Which files count is the loader's rule, and Transformers': ``model.safetensors``, else the shards of the index.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from quick_model_loader.torch_view import torch_dtype

import quick_model_loader as qml
from aegaeon.engine.checkpoint.safetensors_file import PADDING_PREFIX
from aegaeon.engine.errors import CheckpointError

FLOAT_TYPES = frozenset({torch.bfloat16, torch.float16, torch.float32, torch.float64})
"""Types whose numbers mean themselves. All others mean something only together with scales or codebooks."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies: ``begin_byte`` counts from the beginning of ``file``; ``dtype`` None: torch has none."""

    file: Path
    dtype: torch.dtype | None
    shape: tuple[int, ...]
    begin_byte: int


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of a checkpoint, by name, without padding, file by file.

    Raises ``CheckpointError`` for files that are no whole checkpoint.
    """
    try:
        checkpoint = qml.inspect(path)
    except qml.NotACheckpointError as error:
        raise CheckpointError(
            f"{error}; only safetensors can be served, save other formats with save_pretrained"
        ) from error
    except qml.LoaderError as error:
        raise CheckpointError(f"{error}; download or write it again") from error
    return {
        name: StoredTensor(checkpoint.files[info.file].path, torch_dtype(info.dtype), info.shape, info.begin)
        for name, info in checkpoint.tensors.items()
        if not name.startswith(PADDING_PREFIX)
    }


def stored_float_dtype(stored: Mapping[str, StoredTensor]) -> torch.dtype | None:
    """The checkpoint's own type: that of the first float tensor, by name, of its first file, as in Transformers."""
    first = next(iter(stored.values()), None)
    types = (tensor.dtype for _, tensor in sorted(stored.items()) if first and tensor.file == first.file)
    return next((dtype for dtype in types if dtype in FLOAT_TYPES), None)
