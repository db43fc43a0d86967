"""Reading a JSON object from a file that anybody may have written: a pipe, a gigabyte, lists in lists without end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LFS_POINTER = b"version https://git-lfs"
_MAX_BYTES = 64 << 20


class JsonFileError(ValueError):
    """The file cannot be read, or holds no JSON object; ``reason`` says why, as a sentence about the file."""

    def __init__(self, file: Path, reason: str) -> None:
        self.reason = reason
        super().__init__(f"{file} {reason}")


def read_object(file: Path) -> dict[str, Any]:
    """The object in a file of at most 64 MiB. Raises ``JsonFileError``."""
    content = read_bytes(file, _MAX_BYTES)
    try:
        data = json.loads(content)
    except RecursionError as error:
        raise JsonFileError(file, "is not usable: its JSON is nested too deeply") from error
    except ValueError as error:
        raise JsonFileError(file, f"is not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise JsonFileError(file, "is not a JSON object")
    return data


def read_bytes(file: Path, most_bytes: int) -> bytes:
    """All of a regular file that is no larger. Raises ``JsonFileError``."""
    try:
        return _read(file, most_bytes)
    except OSError as error:
        raise JsonFileError(file, f"cannot be read: {error.strerror}") from error


def _read(file: Path, most_bytes: int) -> bytes:
    if file.is_symlink() and not file.exists():
        raise JsonFileError(file, f"is a link to {file.readlink()}, which is not there; the download is incomplete")
    if file.exists() and not file.is_file():
        raise JsonFileError(file, "is not a regular file")
    with file.open("rb") as stream:
        content = stream.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise JsonFileError(file, f"is larger than {most_bytes >> 20} MiB; is it the right one?")
    if content.startswith(LFS_POINTER):
        raise JsonFileError(file, "is a Git LFS pointer; run `git lfs pull` in its repository")
    return content
