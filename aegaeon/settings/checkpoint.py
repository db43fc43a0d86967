"""How many bytes the weights of a model's directory are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aegaeon.checkpoint_folder import FolderError, check_folder
from aegaeon.json_file import read_object
from aegaeon.settings.error import SettingsError

_ELEMENT_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
_FLOATS = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def weight_bytes(directory: Path, dtype: str | None = None) -> int:
    """Bytes of the checkpoint's weights, in ``dtype`` (None: the configuration's, else as they are).

    Raises ``SettingsError`` where the directory cannot be a checkpoint.
    """
    try:
        checkpoint = check_folder(directory)
    except FolderError as error:
        raise SettingsError(str(error)) from error
    element_bytes = _ELEMENT_BYTES.get(dtype or _configured_dtype(directory) or "")
    if element_bytes is None:
        return checkpoint.buffer_bytes
    floats = [tensor for tensor in checkpoint.tensors.values() if tensor.dtype in _FLOATS]
    stored_bytes = sum(tensor.nbytes for tensor in floats)
    wanted_bytes = sum(tensor.nbytes * element_bytes // _ELEMENT_BYTES[_FLOATS[tensor.dtype]] for tensor in floats)
    return checkpoint.buffer_bytes - stored_bytes + wanted_bytes


def _configured_dtype(directory: Path) -> str | None:
    """The type as a string, where the configuration, or that of its text part, has one."""
    config = read_object(directory / "config.json")
    return next((str(dtype).removeprefix("torch.") for dtype in _dtypes(config)), None)


def _dtypes(config: dict[str, Any]) -> Iterator[Any]:
    for values in (config, config.get("text_config")):
        if isinstance(values, dict):
            yield from (values[key] for key in ("dtype", "torch_dtype") if values.get(key))
