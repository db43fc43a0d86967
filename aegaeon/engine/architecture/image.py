"""Images: checkpoints converted once, so that their files can be bound to Transformers' modules byte for byte.

A checkpoint can be bound as it is when every parameter and persistent buffer of the model's skeleton is stored under
its own name, in the wanted type and shape. Others (experts stored one by one, old names, another float type, a missing
prefix, tied weights under the second name only) are loaded once by Transformers' own machinery and written again: a
complete model directory in a cache folder, with one ``model.safetensors`` whose tensors come in the order of the
modules, 256-byte aligned. Shards with an index need no image: several files are cached as well as one.

Neither way makes up what is missing, leaves out what matters (``unused``), or takes codes for numbers.

An image appears under its final name by a rename, so a half-written one is never seen, and is made under a lock, so
processes that want it at once make it once.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM

from aegaeon.engine.architecture.quiet import quiet_transformers
from aegaeon.engine.architecture.skeleton import float_dtype, load_config
from aegaeon.engine.checkpoint.safetensors_file import write_aligned
from aegaeon.engine.checkpoint.stored_tensor import StoredTensor, stored_tensors
from aegaeon.engine.checkpoint.unused import coded_tensors, unused_tensors
from aegaeon.engine.errors import CheckpointError, UnsupportedModelError

logger = logging.getLogger(__name__)

WEIGHTS_FILE = "model.safetensors"
_FORMAT = 2
"""Counts up whenever the same files would make another image, or none: older ones are never used again."""

_NOT_COPIED = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".ot"}
_PROGRESS_S = 5.0


def needs_image(path: Path, dtype: str | None = None) -> str | None:
    """Why the model directory must be converted, or None if its files can be bound as they are.

    ``dtype``: the wanted float type; None for the one in the model's configuration. Raises ``CheckpointError`` where
    the directory is no model that could be converted either.
    """
    config = _config(path)
    stored = stored_tensors(path)
    wanted = _wanted_dtype(path, config, dtype)
    model = _skeleton(config, wanted)
    _refuse_coded(path, model, stored)
    names: dict[int, str] = {}
    for name, tensor, tensor_dtype in _wanted(model, wanted):
        first = names.setdefault(id(tensor), name)
        reason = (
            _misfit(name, tensor, tensor_dtype, stored.get(name))
            if first == name
            else _untied(stored.get(first), stored.get(name), first, name)
        )
        if reason is not None:
            return reason
    _refuse_unused(path, unused_tensors(model, stored, stored.keys() - model.state_dict(keep_vars=True).keys()))
    return None


def _refuse_coded(path: Path, model: Any, stored: Mapping[str, StoredTensor]) -> None:
    """Raise ``CheckpointError`` where weights are not stored as plain floating-point numbers."""
    if coded := coded_tensors(model, stored):
        types = ", ".join(sorted({_short(stored[name].dtype) for name in coded}))
        raise CheckpointError(
            f"{path} stores {_first_names(coded)} as {types}: it is quantized, and only unquantized checkpoints can be "
            "served"
        )


def _refuse_unused(path: Path, unused: Sequence[str]) -> None:
    """Raise ``CheckpointError`` where tensors would be left out that matter."""
    if unused:
        raise CheckpointError(
            f"{path} stores {_first_names(unused)}, for which its configuration has no place: without them the model "
            "would say something else. Is config.json of another model, are the weights quantized, or is it an adapter?"
        )


def _first_names(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def ensure_image(path: Path, cache_dir: Path, dtype: str | None = None) -> Path:
    """The image of a model directory, converted now unless it is in the cache.

    The image is named by the directory's files (names, sizes, times), the float type and the version of Transformers.
    Raises ``CheckpointError`` where it cannot be made.
    """
    path = path.resolve()
    config = _config(path)
    wanted = _wanted_dtype(path, config, dtype)
    image = cache_dir / f"{path.name}-{_fingerprint(path, wanted)}"
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with _locked(cache_dir / f".{image.name}.lock"):
            if not _whole(image):
                _build(path, image, wanted)
    except OSError as error:
        raise CheckpointError(f"cannot write an image of {path} to {cache_dir}: {error}") from error
    return image


def _config(path: Path) -> Any:
    """The model's configuration, if it is of a kind that can be bound."""
    try:
        return load_config(path)
    except UnsupportedModelError as error:
        raise CheckpointError(str(error)) from error


def _wanted_dtype(path: Path, config: Any, dtype: str | None) -> torch.dtype:
    try:
        return float_dtype(path, config, dtype)
    except UnsupportedModelError as error:
        raise CheckpointError(str(error)) from error


def _skeleton(config: Any, dtype: torch.dtype) -> Any:
    """The model without memory for weights."""
    try:
        with quiet_transformers(), torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError) as error:
        raise CheckpointError(f"no model can be built for model type {config.model_type!r}: {error}") from error


def _wanted(model: Any, dtype: torch.dtype) -> Iterator[tuple[str, Tensor, torch.dtype]]:
    """(name, meta tensor, type when loaded) of each parameter and persistent buffer; tied ones share a tensor."""
    exceptions = {re.compile(glob.replace("*", ".*")): kept for glob, kept in model._get_dtype_plan(dtype).items()}
    for name, tensor in model.state_dict(keep_vars=True).items():
        kept = next((kept for pattern, kept in exceptions.items() if pattern.search(name)), tensor.dtype)
        yield name, tensor, kept


def _misfit(name: str, wanted: Tensor, dtype: torch.dtype, stored: StoredTensor | None) -> str | None:
    """Why a stored tensor cannot be bound, or None."""
    if stored is None:
        return f"{name} is not stored under this name"
    if stored.shape != tuple(wanted.shape):
        return f"{name} is stored as {list(stored.shape)}, the model wants {list(wanted.shape)}"
    if stored.dtype != dtype:
        return f"{name} is stored as {_short(stored.dtype)}, wanted is {_short(dtype)}"
    if stored.begin_byte % dtype.itemsize:
        return f"{name} begins at byte {stored.begin_byte}, which is no multiple of its {dtype.itemsize}-byte elements"
    return None


def _untied(first: StoredTensor | None, second: StoredTensor | None, first_name: str, second_name: str) -> str | None:
    """Why two names of one tied weight cannot be bound to the first, or None."""
    if first is None or second is None or torch.equal(_read(first, first_name), _read(second, second_name)):
        return None
    return f"{first_name} and {second_name} should be tied but are stored with different values"


def _read(stored: StoredTensor, name: str) -> Tensor:
    with safe_open(stored.file, framework="pt") as file:
        tensor: Tensor = file.get_tensor(name)
    return tensor


def _fingerprint(path: Path, dtype: torch.dtype) -> str:
    files = sorted(file for file in path.iterdir() if file.is_file())
    facts = [str(path), (path / "config.json").read_text(), _short(dtype), _FORMAT, transformers.__version__]
    facts += [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Hold an exclusive lock that dies with the process."""
    with file.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _whole(image: Path) -> bool:
    """Whether there is an image, as it was written."""
    try:
        return bool(stored_tensors(image)) and (image / "config.json").is_file()
    except CheckpointError:
        return False


def _build(path: Path, image: Path, dtype: torch.dtype) -> None:
    """Write the image next to its place and move it there; the caller holds the image's lock."""
    for leftover in (image, *image.parent.glob(f".{image.name}.part-*")):
        shutil.rmtree(leftover, ignore_errors=True)
    part = image.parent / f".{image.name}.part-{uuid.uuid4().hex[:8]}"
    start_s = time.monotonic()
    logger.info("converting %s to a %s image in %s", path, _short(dtype), image)
    part.mkdir()
    try:
        _fill(path, part, dtype)
        part.rename(image)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    logger.info("image of %s is ready after %.1f s", path, time.monotonic() - start_s)


def _fill(path: Path, part: Path, dtype: torch.dtype) -> None:
    stored = stored_tensors(path)
    _refuse_coded(path, _skeleton(_config(path), dtype), stored)
    model = _load(path, dtype, stored)
    tensors = _distinct(model.state_dict(keep_vars=True))
    _refuse_overflow(path, tensors)
    total_bytes = sum(tensor.nbytes for tensor in tensors.values())
    free_bytes = shutil.disk_usage(part).free
    if free_bytes < 1.01 * total_bytes:
        raise CheckpointError(
            f"an image of {path} needs {total_bytes / 1e9:.2f} GB, {part.parent} has {free_bytes / 1e9:.2f} GB left; "
            "make room or choose another cache folder"
        )
    for file in path.rglob("*"):
        if file.is_file() and _belongs(file.relative_to(path)):
            copy = part / file.relative_to(path)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
    if not (part / "generation_config.json").exists():
        model.generation_config.save_pretrained(part)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(part)
    write_aligned(part / WEIGHTS_FILE, tensors, _progress_log(path, total_bytes))


def _refuse_overflow(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise ``CheckpointError`` for numbers beyond float16, which end at 65504; the other types reach far enough."""
    halves = {name: tensor for name, tensor in tensors.items() if tensor.dtype is torch.float16}
    if beyond := [name for name, tensor in halves.items() if not tensor.isfinite().all()]:
        raise CheckpointError(f"{path}: {_first_names(beyond)} does not fit float16; use dtype bfloat16 or float32")


def _distinct(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor once, under the first of its names: the one the skeleton calls it by."""
    first_names: dict[int, str] = {}
    for name, tensor in tensors.items():
        first_names.setdefault(id(tensor), name)
    return {name: tensors[name] for name in first_names.values()}


def _belongs(file: Path) -> bool:
    """Whether a file of the checkpoint goes into the image as it is: all but weights, index and hidden files."""
    hidden = any(part.startswith(".") for part in file.parts)
    return not hidden and file.suffix not in _NOT_COPIED and not file.name.endswith(".index.json")


def _load(path: Path, dtype: torch.dtype, stored: Mapping[str, StoredTensor]) -> Any:
    """The model as Transformers loads it; nothing of it may be missing, or it would be made up, nor be left out."""
    try:
        with quiet_transformers():
            model, info = AutoModelForCausalLM.from_pretrained(
                path,
                dtype=dtype,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # its own error for them names no tensor
                output_loading_info=True,
            )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, SafetensorError) as error:
        # Its error for experts that cannot be stacked points to a report that nobody sees.
        stacking = "tensors that belong together differ in number or shape; is one missing?"
        reason = stacking if "`CONVERSION`" in str(error) else error
        raise CheckpointError(f"Transformers cannot load {path}: {reason}") from error
    if misfits := sorted(info["mismatched_keys"]):
        name, found, wanted = misfits[0]
        more = f" ({len(misfits)} tensors do not fit)" if len(misfits) > 1 else ""
        raise CheckpointError(
            f"{path} has {name} as {list(found)}, its configuration wants {list(wanted)}{more}; is config.json of "
            "another model, or a file missing?"
        )
    if missing := sorted(info["missing_keys"]):
        raise CheckpointError(
            f"{path} lacks {len(missing)} tensors that its model type needs, first {', '.join(missing[:3])}; "
            "is it a base model without its head, or an adapter?"
        )
    _refuse_unused(path, unused_tensors(model, stored, info["unexpected_keys"]))
    if not model.all_tied_weights_keys:
        model.config.tie_word_embeddings = False  # the checkpoint's values said so, whatever its configuration says
    return model


def _progress_log(path: Path, total_bytes: int) -> Callable[[int], None]:
    """A callback that logs how far writing is, every few seconds."""
    next_s = time.monotonic() + _PROGRESS_S

    def report(written_bytes: int) -> None:
        nonlocal next_s
        if time.monotonic() >= next_s:
            next_s = time.monotonic() + _PROGRESS_S
            logger.info("image of %s: %.0f %% of %.1f GB", path, 100 * written_bytes / total_bytes, total_bytes / 1e9)

    return report


def _short(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.")
