"""Which blocks of the KV slab cache are whole, and what they hold, in memory that outlives the driver.

::

    | fingerprint | shape of each slab, 0: none | block 0 of slab 0 | block 1 of slab 0 | ...
      16 bytes      2 bytes a slab

    a block:  | name     | the block before it, plus one | root     | tokens       |
                16 bytes   8 bytes, its byte offset        16 bytes   4 bytes each

A name of zeros: the block is not whole. A root instead of a block before it: it is the first of a sequence.

A block is named when all its KV is safe, and loses its name before it may be written to again, so whoever reads this
after the driver was killed at any moment finds no name that is not true. Slabs have room for the blocks of any shape.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from aegaeon.core.kv_shape import KvShape
from aegaeon.device.common.shared_memory import create_memfd
from aegaeon.memory.token_hash import NAME_BYTES, next_name

_NO_NAME = bytes(NAME_BYTES)
_SHAPE_BYTES = 2
_BEFORE = struct.Struct(f"<Q{NAME_BYTES}s")
_TOKENS_AT = NAME_BYTES + _BEFORE.size


class ForeignIndexError(Exception):
    """The memory is not the index of such a cache."""


@dataclass(frozen=True, slots=True)
class WholeBlock:
    """A block with a name; ``before``: the one that it follows on, or the root's name."""

    block: int
    shape: KvShape
    name: bytes
    before: int | bytes
    tokens: bytes


class KvIndex:
    """The index of a cache of ``total_bytes`` in slabs of ``slab_bytes`` for these shapes; ``fd``: one that was left.

    Raises ``ForeignIndexError`` where ``fd`` is of another cache, and ``SharedMemoryError``.
    """

    def __init__(self, total_bytes: int, slab_bytes: int, shapes: Sequence[KvShape], fd: int | None = None) -> None:
        self._slab_bytes = slab_bytes
        self._shapes = shapes
        self._block_bytes = (0, *(shape.block_bytes for shape in shapes))
        self._numbers = {id(shape): shapes.index(shape) + 1 for shape in shapes}  # equal ones share slabs
        slabs = total_bytes // slab_bytes
        self._record_bytes = (0, *(_TOKENS_AT + 4 * shape.block_tokens for shape in shapes))
        self._records_bytes = max(
            slab_bytes // shape.block_bytes * (_TOKENS_AT + 4 * shape.block_tokens) for shape in shapes
        )
        self._records_at = -(-(NAME_BYTES + slabs * _SHAPE_BYTES) // NAME_BYTES) * NAME_BYTES
        size_bytes = self._records_at + slabs * self._records_bytes
        fingerprint = _fingerprint(total_bytes, slab_bytes, shapes)
        if fd is not None and (os.fstat(fd).st_size, os.pread(fd, NAME_BYTES, 0)) != (size_bytes, fingerprint):
            raise ForeignIndexError("it is the index of another cache, or of other shapes")
        self.fd = create_memfd("the KV index", size_bytes, flag="--kv-cache") if fd is None else os.dup(fd)
        self._memory = mmap.mmap(self.fd, size_bytes)
        self._memory[:NAME_BYTES] = fingerprint
        self._slab_shapes = memoryview(self._memory)[NAME_BYTES : NAME_BYTES + slabs * _SHAPE_BYTES].cast("H")

    def holding(self, blocks: Iterable[int], tokens: bytes, size: int) -> int:
        """How many of the first of these whole blocks hold these tokens (packed, ``size`` bytes a block)."""
        memory, place = self._memory, self._place
        count = 0
        for block in blocks:
            start = place(block) + _TOKENS_AT
            if memory[start : start + size] != tokens[count * size : count * size + size]:
                break
            count += 1
        return count

    def agreeing(self, block: int, tokens: bytes) -> int:
        """How many of the first tokens of a whole block are these (packed, no more than it has)."""
        start = self._place(block) + _TOKENS_AT
        own = np.frombuffer(self._memory[start : start + len(tokens)], np.uint32)
        return int(np.append(own == np.frombuffer(tokens, np.uint32), False).argmin())

    def set(self, block: WholeBlock) -> None:
        """All KV of a block is safe."""
        self._serve(block.block // self._slab_bytes, self._number(block.shape))
        place = self._place(block.block)
        before = (
            _BEFORE.pack(0, block.before) if isinstance(block.before, bytes) else _BEFORE.pack(block.before + 1, b"")
        )
        self._memory[place + NAME_BYTES : place + _TOKENS_AT + len(block.tokens)] = before + block.tokens
        self._memory[place : place + NAME_BYTES] = block.name

    def _serve(self, slab: int, number: int) -> None:
        """A slab has blocks of a shape. What records of another one have left could be taken for names."""
        if self._slab_shapes[slab] not in (0, number):
            start = self._records_at + slab * self._records_bytes
            self._memory[start : start + self._records_bytes] = bytes(self._records_bytes)
        self._slab_shapes[slab] = number

    def clear(self, block: int) -> None:
        """A block may be written to."""
        place = self._place(block)
        self._memory[place : place + NAME_BYTES] = _NO_NAME

    def tokens(self, block: int) -> bytes:
        """The (packed) tokens of a whole block."""
        start = self._place(block) + _TOKENS_AT
        shape = self._shapes[self._slab_shapes[block // self._slab_bytes] - 1]
        return self._memory[start : start + 4 * shape.block_tokens]

    def whole_blocks(self) -> Iterator[WholeBlock]:
        """All blocks that can be found, each after the one that it follows on. The others lose their names."""
        whole = {one.block: one for one in self._named()}
        following: defaultdict[int | None, list[WholeBlock]] = defaultdict(list)
        for one in whole.values():
            following[one.before if isinstance(one.before, int) else None].append(one)
        found = following[None]
        for one in found:  # it grows meanwhile
            del whole[one.block]
            yield one
            found += (child for child in following[one.block] if _follow(one, child))
        for block in whole:
            self.clear(block)

    def _named(self) -> Iterator[WholeBlock]:
        for slab, number in enumerate(self._slab_shapes):
            for index in self._named_in(slab, number) if number else ():
                yield self._whole_block(slab * self._slab_bytes + index * self._block_bytes[number])

    def _named_in(self, slab: int, number: int) -> list[int]:
        """Which blocks of a slab of a shape have names."""
        blocks, size = self._slab_bytes // self._block_bytes[number], self._record_bytes[number]
        start = self._records_at + slab * self._records_bytes
        records = np.frombuffer(self._memory, np.uint8, blocks * size, start).reshape(blocks, size)
        return np.flatnonzero(records[:, :NAME_BYTES].any(axis=1)).tolist()

    def _whole_block(self, block: int) -> WholeBlock:
        start, shape = self._place(block), self._shapes[self._slab_shapes[block // self._slab_bytes] - 1]
        before, root = _BEFORE.unpack_from(self._memory, start + NAME_BYTES)
        return WholeBlock(
            block,
            shape,
            self._memory[start : start + NAME_BYTES],
            before - 1 if before else root,
            self._memory[start + _TOKENS_AT : start + _TOKENS_AT + 4 * shape.block_tokens],
        )

    def close(self) -> None:
        """Let go of the memory."""
        self._slab_shapes.release()
        self._memory.close()
        os.close(self.fd)

    def _place(self, block: int) -> int:
        slab, offset = divmod(block, self._slab_bytes)
        number = self._slab_shapes[slab]
        index = offset // self._block_bytes[number]
        return self._records_at + slab * self._records_bytes + index * self._record_bytes[number]

    def _number(self, shape: KvShape) -> int:
        return self._numbers.get(id(shape)) or self._shapes.index(shape) + 1


def _fingerprint(total_bytes: int, slab_bytes: int, shapes: Iterable[KvShape]) -> bytes:
    return blake2b(repr((total_bytes, slab_bytes, tuple(shapes))).encode(), digest_size=NAME_BYTES).digest()


def _follow(one: WholeBlock, child: WholeBlock) -> bool:
    return child.shape == one.shape and child.name == next_name(one.name, child.tokens)
