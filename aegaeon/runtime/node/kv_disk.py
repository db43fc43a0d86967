"""Reads and writes KV between the slab cache and a folder, on two threads of its own: nobody waits for a disk.

Reads never wait for writes. A disk that cannot be used is said in one line, and the node goes on without.
"""

from __future__ import annotations

import logging
import mmap
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue

from aegaeon.memory.stored_block import StoredBlock
from aegaeon.runtime.node.core import driver_inputs as i
from aegaeon.runtime.node.core import driver_outputs as o
from aegaeon.runtime.node.kv_folder import BadBlockError, KvFolder, KvFolderError

_LOCK_WAIT_S, _LOCK_POLL_S = 30.0, 0.1  # who had the folder before may be about to end
_CLOSE_WAIT_S = 2.0

logger = logging.getLogger(__name__)

Tell = Callable[[i.DriverInput], None]
DiskOutput = o.CopyKv | o.WriteKv | o.RemoveKv | o.ReadKv


class KvDisk:
    """``slabs``: a descriptor of the slab cache. ``tell`` may be called on any thread."""

    def __init__(self, path: Path, slabs: int, tell: Tell) -> None:
        self._path = path
        self._fd = os.dup(slabs)
        self._slabs = memoryview(mmap.mmap(slabs, 0))
        self._tell = tell
        self._closed = threading.Event()
        self._folder: KvFolder | None = None
        self._copies: list[tuple[StoredBlock, bytes]] = []
        self._queues: dict[str, SimpleQueue[DiskOutput | None]] = {"write": SimpleQueue(), "read": SimpleQueue()}
        self._threads = [
            threading.Thread(target=self._write_all, name="kv-write", daemon=True),
            threading.Thread(target=self._read_all, name="kv-read", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def do(self, output: DiskOutput) -> None:
        """Soon, and tell of it."""
        self._queues["read" if isinstance(output, o.ReadKv) else "write"].put(output)

    def close(self) -> None:
        """Stop after the block that is under way; a disk that hangs is not waited for."""
        self._closed.set()
        for queue in self._queues.values():
            queue.put(None)
        for thread in self._threads:
            thread.join(_CLOSE_WAIT_S)
        if self._folder is not None:
            self._folder.close()
        if not any(thread.is_alive() for thread in self._threads):
            self._slabs.release()
            os.close(self._fd)

    def _open(self) -> None:
        until_s = time.monotonic() + _LOCK_WAIT_S
        try:
            self._folder = KvFolder(
                self._path, lambda: not self._closed.wait(_LOCK_POLL_S) and time.monotonic() < until_s
            )
            files = self._folder.files()
        except (KvFolderError, OSError) as error:
            if not self._closed.is_set():
                logger.warning("no KV is kept on disk: --kv-disk: %s", error)
            return
        logger.info("%d blocks of KV are on disk in %s", len(files), self._path)
        self._tell(i.KvFound(tuple(files)))

    def _write_all(self) -> None:
        self._open()
        for output in iter(self._queues["write"].get, None):
            if isinstance(output, o.CopyKv):
                self._copy(output)
            elif isinstance(output, o.WriteKv):
                self._write(output)
            elif isinstance(output, o.RemoveKv):
                self._remove(output)

    def _copy(self, output: o.CopyKv) -> None:
        try:
            # Not a copy of the mapped bytes, for which all other threads would wait.
            self._copies = [(b, os.pread(self._fd, b.size_bytes, b.offset)) for b in output.blocks]
        except MemoryError:
            logger.warning("%d blocks of KV are not kept on disk: there is no memory to copy them", len(output.blocks))
        self._tell(i.KvCopied())

    def _write(self, output: o.WriteKv) -> None:
        assert self._folder is not None, "nobody was told of a folder"
        wanted, written, problem = frozenset(output.names), [], ""
        for block, kv in self._copies:
            if self._closed.is_set():
                break
            if block.name in wanted:
                try:
                    self._folder.write(block, kv)
                    written.append(block.name)
                except OSError as error:
                    problem = f"{self._path}/{block.name.hex()}.kv: {error.strerror}"
        self._copies = []
        if problem and written:  # not the disk, but what lies there in the place of a block
            logger.warning("cannot write KV to disk: %s", problem)
        self._tell(i.KvWritten(tuple(written), "" if written else problem))

    def _remove(self, output: o.RemoveKv) -> None:
        assert self._folder is not None, "nobody was told of a folder"
        try:
            for name in output.names:
                self._folder.remove(name)
        except OSError as error:
            logger.warning("KV stays in %s longer than it should: %s", self._path, error)

    def _read_all(self) -> None:
        for output in iter(self._queues["read"].get, None):
            assert isinstance(output, o.ReadKv), "others go to the other thread"
            begin_s = time.monotonic()
            blocks = 0
            while blocks < len(output.blocks) and not self._closed.is_set() and self._read(output.blocks[blocks]):
                blocks += 1
            self._tell(i.KvRead(output.reading, blocks, time.monotonic() - begin_s))

    def _read(self, block: StoredBlock) -> bool:
        assert self._folder is not None, "nobody was told of a folder"
        try:
            self._folder.read(block, self._slab(block))
        except FileNotFoundError:
            return False  # it was given up meanwhile
        except (BadBlockError, OSError) as error:
            logger.warning("KV on disk is not used: %s/%s.kv: %s", self._path, block.name.hex(), error)
            return False
        return True

    def _slab(self, block: StoredBlock) -> memoryview:
        return self._slabs[block.offset : block.offset + block.size_bytes]
