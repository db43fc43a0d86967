"""Which blocks of the KV slab cache are whole, by the names of their tokens, in memory that outlives the driver.

::

    | fingerprint | shape of each slab, 0: none | name of block 0 of slab 0 | name of block 1 of slab 0 | ...
      16 bytes      2 bytes a slab                16 bytes a block, zeros: the block is not whole

A block is named when all its KV is safe, and loses its name before it may be written to again, so whoever reads this
after the driver was killed at any moment finds no name that is not true. Slabs have room for names of as many blocks as
the smallest shape gives them.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Sequence
from hashlib import blake2b

import numpy as np

from aegaeon.core.kv_shape import KvShape
from aegaeon.device.common.shared_memory import create_memfd
from aegaeon.memory.token_hash import NAME_BYTES

_NO_NAME = bytes(NAME_BYTES)
_SHAPE_BYTES = 2


class ForeignIndexError(Exception):
    """The memory is not the index of such a cache."""


class KvIndex:
    """The index of a cache of ``total_bytes`` in slabs of ``slab_bytes`` for these shapes; ``fd``: one that was left.

    Raises ``ForeignIndexError`` where ``fd`` is of another cache, and ``SharedMemoryError``.
    """

    def __init__(self, total_bytes: int, slab_bytes: int, shapes: Sequence[KvShape], fd: int | None = None) -> None:
        self._slab_bytes = slab_bytes
        self._shapes = shapes
        self._numbers = {id(shape): number for number, shape in enumerate(shapes, start=1)}
        slabs = total_bytes // slab_bytes
        self._slab_blocks = slab_bytes // min(shape.block_bytes for shape in shapes)
        self._names_at = -(-(NAME_BYTES + slabs * _SHAPE_BYTES) // NAME_BYTES) * NAME_BYTES
        size_bytes = self._names_at + slabs * self._slab_blocks * NAME_BYTES
        fingerprint = _fingerprint(total_bytes, slab_bytes, shapes)
        if fd is not None and (os.fstat(fd).st_size, os.pread(fd, NAME_BYTES, 0)) != (size_bytes, fingerprint):
            raise ForeignIndexError("it is the index of another cache, or of other shapes")
        self.fd = create_memfd("the KV index", size_bytes, flag="--kv-cache") if fd is None else os.dup(fd)
        self._memory = mmap.mmap(self.fd, size_bytes)
        self._memory[:NAME_BYTES] = fingerprint
        self._slab_shapes = np.frombuffer(self._memory, np.uint16, slabs, offset=NAME_BYTES)
        self._names = np.frombuffer(self._memory, f"V{NAME_BYTES}", slabs * self._slab_blocks, offset=self._names_at)

    def name_of(self, shape: KvShape, block: int) -> bytes:
        """The name of a whole block."""
        place = self._place(shape, block)
        return self._memory[place : place + NAME_BYTES]

    def set_name(self, shape: KvShape, block: int, name: bytes) -> None:
        """All KV of a block is safe."""
        self._slab_shapes[block // self._slab_bytes] = self._number(shape)
        place = self._place(shape, block)
        self._memory[place : place + NAME_BYTES] = name

    def clear(self, shape: KvShape, blocks: Iterable[int]) -> None:
        """These blocks may be written to."""
        for block in blocks:
            place = self._place(shape, block)
            self._memory[place : place + NAME_BYTES] = _NO_NAME

    def whole_blocks(self) -> dict[int, tuple[KvShape, bytes]]:
        """All blocks with a name: shape and name by byte offset in the arena."""
        named = np.flatnonzero(np.frombuffer(self._memory, np.uint64, offset=self._names_at).reshape(-1, 2).any(axis=1))
        found = {}
        for number in named.tolist():
            slab, place = divmod(number, self._slab_blocks)
            shape = self._shapes[int(self._slab_shapes[slab]) - 1]
            found[slab * self._slab_bytes + place * shape.block_bytes] = shape, self._names[number].tobytes()
        return found

    def close(self) -> None:
        """Let go of the memory."""
        del self._slab_shapes, self._names
        self._memory.close()
        os.close(self.fd)

    def _place(self, shape: KvShape, block: int) -> int:
        slab, offset = divmod(block, self._slab_bytes)
        return self._names_at + (slab * self._slab_blocks + offset // shape.block_bytes) * NAME_BYTES

    def _number(self, shape: KvShape) -> int:
        return self._numbers.get(id(shape)) or self._shapes.index(shape) + 1


def _fingerprint(total_bytes: int, slab_bytes: int, shapes: Sequence[KvShape]) -> bytes:
    return blake2b(repr((total_bytes, slab_bytes, tuple(shapes))).encode(), digest_size=NAME_BYTES).digest()
