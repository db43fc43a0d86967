"""A folder with a file for each block of KV (``StoredBlock``), which one process at a time uses.

A file has its name when all of it is written. Nothing is forced to the disk: after a loss of power a file may be torn,
which its checksum shows, and what cannot be believed is removed. Whatever else lies in the folder is left alone.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from aegaeon.memory.stored_block import CHECKSUM, FORMAT, StoredBlock
from aegaeon.memory.token_hash import NAME_BYTES

_OURS = re.compile(rf"[0-9a-f]{{{2 * NAME_BYTES}}}\.(kv|tmp)")
_LOCK, _FORMAT = "aegaeon-kv.lock", b"format %d\n" % FORMAT
_WANTING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""What a reader may be short of, which is no fault of a file's."""

_NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW


class KvFolderError(Exception):
    """The folder cannot be used; the text says why, and what to do."""


class BadBlockError(Exception):
    """A file is not what it is called."""


class KvFolder:
    """Locked while it is open. Raises ``KvFolderError``; ``wait`` is called while another process has it, and says
    whether to try again."""

    def __init__(self, path: Path, wait: Callable[[], bool] = lambda: False) -> None:
        self._path = path
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise KvFolderError(f"{path} cannot be used: {error.strerror}") from error
        try:
            self._claim(wait)
        except BaseException:
            os.close(self._lock)
            raise

    def _claim(self, wait: Callable[[], bool]) -> None:
        while not _locked(self._lock):
            if not wait():
                raise KvFolderError(f"{self._path} is in use by another pool or node: give each a folder of its own")
        said = os.pread(self._lock, 64, 0)
        if said not in (b"", _FORMAT):
            raise KvFolderError(f"{self._path} was written by another version of aegaeon: empty it, or give another")
        try:
            os.pwrite(self._lock, _FORMAT, 0)
        except OSError as error:
            raise KvFolderError(f"{self._path} cannot be written to: {error.strerror}") from error

    def files(self) -> list[tuple[bytes, int]]:
        """Names of the blocks that are there, and sizes of their files; those that were used last at the end. What was
        not written to its end is removed. Raises ``OSError``."""
        found: list[tuple[int, bytes, int]] = []
        with os.scandir(self._path) as entries:
            for entry in entries:
                if _OURS.fullmatch(entry.name):
                    self._take_in(entry, found)
        return [(name, size_bytes) for _, name, size_bytes in sorted(found)]

    def _take_in(self, entry: os.DirEntry[str], found: list[tuple[int, bytes, int]]) -> None:
        stem, _, kind = entry.name.partition(".")
        with suppress(FileNotFoundError):
            if kind == "tmp":
                Path(entry.path).unlink()
            elif entry.is_file(follow_symlinks=False):
                state = entry.stat(follow_symlinks=False)
                found.append((state.st_mtime_ns, bytes.fromhex(stem), state.st_size))

    def read(self, block: StoredBlock, into: memoryview) -> None:
        """The KV of a block. Raises ``BadBlockError``, or ``OSError`` where there is nothing or it cannot be read; what
        is at fault itself is removed. What ``into`` holds is worth nothing then."""
        path = self._file(block.name)
        try:
            _read(path, block, into)
        except (BadBlockError, OSError) as error:
            if not isinstance(error, OSError) or error.errno not in _WANTING:
                with suppress(OSError):
                    path.unlink()
            raise

    def write(self, block: StoredBlock, kv: bytes) -> None:
        """Keep a block. Raises ``OSError``, and leaves nothing then."""
        path, unfinished = self._file(block.name), self._file(block.name, "tmp")
        header = block.header
        checksum = CHECKSUM.pack(zlib.crc32(kv, zlib.crc32(header)))
        try:
            with os.fdopen(os.open(unfinished, _NEW, 0o600), "wb") as file:
                file.writelines((header, kv, checksum))
            unfinished.rename(path)
        except OSError:
            with suppress(OSError):
                unfinished.unlink()
            raise

    def remove(self, name: bytes) -> None:
        """A block is not kept any more. Raises ``OSError`` where it stays."""
        with suppress(FileNotFoundError):
            self._file(name).unlink()

    def close(self) -> None:
        """Another may use it."""
        os.close(self._lock)

    def _file(self, name: bytes, kind: str = "kv") -> Path:
        return self._path / f"{name.hex()}.{kind}"


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(path: Path, block: StoredBlock, into: memoryview) -> None:
    """Raises ``BadBlockError`` and ``OSError``."""
    expected = block.header
    header, checksum = bytearray(len(expected)), bytearray(CHECKSUM.size)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        state = os.fstat(fd)
        if not stat.S_ISREG(state.st_mode) or state.st_size != block.file_bytes:
            raise BadBlockError(f"has {state.st_size} bytes, not {block.file_bytes}")
        os.preadv(fd, [header, into, checksum], 0)
        with suppress(OSError):  # only the order in which they are given up after a restart
            os.utime(fd)
    finally:
        os.close(fd)
    if header != expected:
        raise BadBlockError("holds another block")
    if CHECKSUM.unpack(checksum) != (zlib.crc32(into, zlib.crc32(header)),):
        raise BadBlockError("is damaged")
