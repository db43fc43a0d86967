"""Whether a folder is a checkpoint, as far as that can be said without torch.

Most folders that cannot be served are a good checkpoint's neighbours: an adapter, a cache's root, half a download. The
error says which, and what to do.
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import quick_model_loader as qml
from aegaeon.json_file import LFS_POINTER, JsonFileError, read_bytes, read_object

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_OBJECTS = ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_MOST_BYTES = {"tokenizer.json": 256 << 20, "chat_template.jinja": 4 << 20}
"""Of files that others read whole, generously; they may have a link that leads nowhere for no file at all."""

_OTHER_FORMATS = ("*.bin", "*.gguf", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.onnx", "*.npz")


class FolderError(ValueError):
    """A folder holds no checkpoint that could be served; the message says what it is instead."""


def check_folder(directory: Path) -> qml.Checkpoint:
    """The files of the checkpoint in a folder. Raises ``FolderError``, which names what is there in its place."""
    try:
        _check_readable(directory)
        _check_files(directory)
        config = _read_config(directory)
        _check_beside(directory)
        return _checkpoint(directory, config)
    except OSError as error:
        raise FolderError(f"{error.filename or directory} cannot be read: {error.strerror}") from error


def _check_readable(directory: Path) -> None:
    if directory.is_symlink() and not directory.exists():
        raise FolderError(f"{directory} is a link to {directory.readlink()}, which is not there")
    if not directory.exists():
        raise FolderError(
            f"{directory} does not exist; give a folder with config.json, *.safetensors and a tokenizer "
            "(models are not downloaded: `hf download ID --local-dir DIR` does that)"
        )
    if not directory.is_dir():
        gguf = "GGUF is not served: " if directory.suffix == ".gguf" else ""
        raise FolderError(f"{directory} is a file; {gguf}give the folder that it is in{' unquantized' * bool(gguf)}")
    try:
        next(directory.iterdir(), None)
    except OSError as error:
        raise FolderError(f"{directory} cannot be read: {error.strerror}; check its permissions") from error


def _check_files(directory: Path) -> None:
    """Whoever reads a pipe waits for ever."""
    for file in sorted(directory.iterdir()):
        mode = file.lstat().st_mode if not file.exists() else file.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)):
            raise FolderError(f"{file} is neither a file nor a folder; remove it")


def _read_config(directory: Path) -> dict[str, Any]:
    if _is_adapter(directory):
        raise FolderError(_adapter(directory))
    file = directory / "config.json"
    if not _is_there(file):
        raise FolderError(f"{directory} {_without_config(directory)}")
    try:
        return read_object(file)
    except JsonFileError as error:
        raise FolderError(str(error)) from error


def _check_beside(directory: Path) -> None:
    """What Transformers reads beside the configuration."""
    try:
        for name in _OBJECTS:
            if _is_there(directory / name):
                read_object(directory / name)
        for name, most_bytes in _MOST_BYTES.items():
            if _is_there(directory / name):
                read_bytes(directory / name, most_bytes)
    except JsonFileError as error:
        raise FolderError(str(error)) from error


def _is_there(file: Path) -> bool:
    return file.exists() or file.is_symlink()


def _is_adapter(directory: Path) -> bool:
    """A folder of its own, or one in which an adapter lies beside the weights that it changes."""
    if not (directory / "adapter_config.json").exists():
        return False
    weights = any((directory / name).is_file() for name in (_SINGLE, _INDEX))
    return not weights or any(directory.glob("adapter_model.*"))


def _adapter(directory: Path) -> str:
    try:
        base = read_object(directory / "adapter_config.json").get("base_model_name_or_path")
    except JsonFileError:
        base = None
    of = f" of {base}" if isinstance(base, str) and base else ""
    return (
        f"{directory} is an adapter (LoRA){of}, which is not served by itself: merge it into its base model "
        "(peft: merge_and_unload, then save_pretrained) and give that folder"
    )


def _without_config(directory: Path) -> str:
    """What a folder is that has no ``config.json``."""
    if snapshot := _snapshot(directory):
        return f"is the root of a hub cache; give the snapshot in it: {snapshot}"
    cached = sorted(folder.name for root in (directory, directory / "hub") for folder in root.glob("models--*"))
    if cached:
        return f"is a hub cache of several models ({', '.join(cached[:3])}); give a snapshot of one of them"
    if any(directory.glob("*.gguf")):
        return "holds GGUF files, which are not served; give the original checkpoint (config.json, *.safetensors)"
    if (directory / "model_index.json").exists():
        return "is a diffusion pipeline, not a language model"
    if (directory / "params.json").exists():
        return "is in its makers' own format (params.json); convert it, or get the one for Transformers"
    if not any(directory.iterdir()):
        return "is empty; is the download complete?"
    inner = sorted(file.parent for file in directory.glob("*/config.json"))
    hint = f"is {inner[0]} meant?" if inner else "a Hugging Face checkpoint has one; is this the right folder?"
    return f"has no config.json; {hint}"


def _snapshot(directory: Path) -> Path | None:
    """The snapshot that a folder of the hub's cache stands for: the main branch's, else any."""
    root = directory.parent if directory.name == "snapshots" else directory
    snapshots = sorted(folder for folder in (root / "snapshots").glob("*") if folder.is_dir())
    main = root / "refs" / "main"
    wanted = main.read_text().strip() if main.is_file() else ""
    return next((folder for folder in snapshots if folder.name == wanted), snapshots[0] if snapshots else None)


def _checkpoint(directory: Path, config: dict[str, Any]) -> qml.Checkpoint:
    other = config.get("transformers_weights")
    if other not in (None, _SINGLE, _INDEX):
        raise FolderError(f"{directory / 'config.json'} has its weights in {other!r}; only {_SINGLE} is served")
    if not any((directory / name).is_file() for name in (_SINGLE, _INDEX)):
        raise FolderError(_without_weights(directory))
    try:
        return qml.inspect(directory)
    except qml.MissingShardError as error:
        raise FolderError(_missing_shard(error)) from error
    except qml.IndexFileError as error:
        raise FolderError(f"{error}; it must name files of its own folder; download the checkpoint again") from error
    except qml.LoaderError as error:
        raise FolderError(_damaged(error)) from error


def _without_weights(directory: Path) -> str:
    """What is there in place of weights."""
    for file in (directory / _SINGLE, directory / _INDEX):
        if file.is_symlink():
            return f"{file} is a link to {file.readlink()}, which is not there; the download is incomplete"
    shards = sorted(file.name for file in directory.glob("*-of-*.safetensors"))
    if shards:
        return f"{directory} has shards ({shards[0]}, ...) but no {_INDEX}; download that, too"
    stray = sorted(file.name for file in directory.glob("*.safetensors"))
    if stray:
        return f"{directory} has {stray[0]}, but weights must be in {_SINGLE} or in the shards of {_INDEX}"
    others = sorted(file.name for pattern in _OTHER_FORMATS for file in directory.glob(pattern))
    hint = f"; {others[0]} is of a format that is not served: convert it to safetensors" if others else ""
    return f"{directory} has no *.safetensors file{hint}"


def _missing_shard(error: qml.LoaderError) -> str:
    if error.path is not None and error.path.is_symlink():
        target = error.path.readlink()
        return f"{error.path} is a link to {target}, which is not there; the download is incomplete"
    return f"{error.path} is named in {_INDEX} but not there; the download is incomplete"


def _damaged(error: qml.LoaderError) -> str:
    """What the loader says of a file, unless it is no weights at all."""
    if error.path is not None and error.path.is_file():
        with error.path.open("rb") as stream:
            if stream.read(len(LFS_POINTER)) == LFS_POINTER:
                return f"{error.path} is a Git LFS pointer, not weights; run `git lfs pull` in its repository"
    return f"{error}; download or write it again"
