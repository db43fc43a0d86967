"""What can go wrong: every exception says which file, which tensor and which byte."""

from pathlib import Path
from typing import Self

__all__ = [
    "AttachError",
    "CancelledError",
    "CapacityError",
    "ChangedError",
    "ChecksumError",
    "ClosedError",
    "CudaError",
    "DeadlineError",
    "DtypeError",
    "DuplicateError",
    "EvictedError",
    "HeaderError",
    "IndexFileError",
    "IoError",
    "KeyInUseError",
    "LoaderError",
    "MissingShardError",
    "NotACheckpointError",
    "OwnerGoneError",
    "PinnedError",
    "PlacementError",
    "SmallPagesWarning",
    "TruncatedError",
]


class LoaderError(Exception):
    """Anything that the loader reports.

    Attributes that do not apply are None: `path` is the file or directory, `tensor` the tensor's name, `offset` the
    byte of the file, `errno` the operating system's error number.
    """

    path: Path | None
    tensor: str | None
    offset: int | None
    errno: int | None

    def __init__(
        self,
        message: str,
        path: Path | None,
        tensor: str | None = None,
        offset: int | None = None,
        errno: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.path = path
        self.tensor = tensor
        self.offset = offset
        self.errno = errno

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[type[Self], tuple[str, Path | None, str | None, int | None, int | None]]:
        """Exceptions travel between processes."""
        return type(self), (self.message, self.path, self.tensor, self.offset, self.errno)


class IoError(LoaderError, OSError):
    """The operating system refused an operation; `errno` and `filename` are set as for any `OSError`."""

    def __init__(
        self,
        message: str,
        path: Path | None,
        tensor: str | None = None,
        offset: int | None = None,
        errno: int | None = None,
    ) -> None:
        super().__init__(message, path, tensor, offset, errno)
        self.filename = None if path is None else str(path)
        self.strerror = message


class NotACheckpointError(LoaderError):
    """The path holds no safetensors file, or is neither a regular file nor a directory."""


class HeaderError(LoaderError):
    """A file's header breaks a rule of the safetensors format."""


class TruncatedError(LoaderError):
    """A file is shorter than its header says, or became shorter while it was read."""


class IndexFileError(LoaderError):
    """The index file is malformed."""


class MissingShardError(LoaderError):
    """The index names a file that does not exist; `path` is that file."""


class DuplicateError(LoaderError):
    """Two files hold a tensor of the same name, or two names lead to the same file."""


class CapacityError(LoaderError):
    """The memory given, or the whole of a store, is smaller than the checkpoint."""


class ChangedError(LoaderError):
    """A file was replaced, removed or written to between its inspection and the end of the load."""


class CancelledError(LoaderError):
    """The load or copy was cancelled."""


class DeadlineError(LoaderError, TimeoutError):
    """The load was not over within its `deadline`."""


class ClosedError(LoaderError):
    """The store was closed."""


class KeyInUseError(LoaderError):
    """The key stands for another checkpoint."""


class ChecksumError(LoaderError):
    """The content is not what its checksums say (`offset` is where the damaged chunk begins), or there are none."""


class AttachError(LoaderError):
    """An entry of another process cannot be had; `path` is the owner's socket."""


class OwnerGoneError(AttachError, ConnectionError):
    """The process that owns the store is gone, closed it, or does not answer."""


class EvictedError(AttachError):
    """The entry was evicted since the handle was made."""


class PlacementError(LoaderError):
    """A copy that was asked for makes no sense: no such tensor or part, or too little room."""


class CudaError(LoaderError):
    """There is no CUDA driver, or it refused a call."""


class PinnedError(Exception):
    """The entry is pinned: unpin it first."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key

    def __str__(self) -> str:
        return f"the entry {self.key!r} is pinned; unpin it first"


class DtypeError(Exception):
    """Torch has no type for this tensor's elements; `Entry.bytes` gives them as they are."""


class SmallPagesWarning(UserWarning):
    """A store has no huge pages: loads are slower than they could be."""
