"""What can be said of a model's directory without loading it: is it a checkpoint, how many bytes are its weights.

Does not know: architectures, tensors; the contents of a safetensors file are the loader's to check.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from aegaeon.settings.error import SettingsError

_INDEX = "model.safetensors.index.json"
_LFS_POINTER = b"version "
_ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def weight_bytes(directory: Path, dtype: str | None = None) -> int:
    """Bytes of the checkpoint's weights, in ``dtype`` (None: as they are).

    Raises ``SettingsError`` where the directory cannot be a checkpoint.
    """
    _check_readable(directory)
    config = _read_json(directory / "config.json", "a Hugging Face checkpoint has one; is this the right folder?")
    stored_bytes = sum(_file_bytes(file) for file in _weight_files(directory))
    element_bytes = _ELEMENT_BYTES.get(str(config.get("dtype") or config.get("torch_dtype")))
    if dtype is None or element_bytes is None:
        return stored_bytes
    return stored_bytes * _ELEMENT_BYTES[dtype] // element_bytes


def _check_readable(directory: Path) -> None:
    if not directory.exists():
        raise SettingsError(
            f"{directory} does not exist; give a folder with config.json, *.safetensors and a tokenizer "
            "(models are not downloaded: `hf download ID --local-dir DIR` does that)"
        )
    if not directory.is_dir():
        raise SettingsError(f"{directory} is a file; give the folder that it is in")
    try:
        next(directory.iterdir(), None)
    except OSError as error:
        raise SettingsError(f"{directory} cannot be read: {error.strerror}; check its permissions") from error


def _weight_files(directory: Path) -> list[Path]:
    """The files that the index names; without an index, the one of the usual name, else every one there is."""
    if (directory / _INDEX).exists():
        return _indexed_files(directory)
    if (directory / "model.safetensors").exists():
        return [directory / "model.safetensors"]
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise SettingsError(f"{directory} has no *.safetensors file{_other_weights(directory)}")
    return files


def _indexed_files(directory: Path) -> list[Path]:
    weight_map = _read_json(directory / _INDEX, "").get("weight_map")
    names = set(map(str, weight_map.values())) if isinstance(weight_map, dict) else set()
    if not names or any(Path(name).name != name for name in names):
        raise SettingsError(f"{directory / _INDEX} must name files of its own folder; download the checkpoint again")
    return [directory / name for name in sorted(names)]


def _other_weights(directory: Path) -> str:
    others = [file.name for pattern in ("*.bin", "*.gguf", "*.pt", "*.pth") for file in directory.glob(pattern)]
    return f"; {sorted(others)[0]} is of a format that is not served: convert it to safetensors" if others else ""


def _file_bytes(file: Path) -> int:
    try:
        with file.open("rb") as stream:
            start = stream.read(len(_LFS_POINTER))
    except FileNotFoundError as error:
        raise SettingsError(f"{file} is named in {_INDEX} but not there; the download is incomplete") from error
    except OSError as error:
        raise SettingsError(f"{file} cannot be read: {error.strerror}") from error
    if start == _LFS_POINTER:
        raise SettingsError(f"{file} is a Git LFS pointer, not weights; run `git lfs pull` in its repository")
    return file.stat().st_size


def _read_json(file: Path, advice: str) -> dict[str, Any]:
    try:
        data = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise SettingsError(f"{file.parent} has no {file.name}; {advice}") from error
    except OSError as error:
        raise SettingsError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise SettingsError(f"{file} is not a JSON object")
    return data
