"""The node's KV slab cache: the ledger of its blocks, and the shared memory they lie in.

The memory outlives any worker: an instance that dies leaves the KV it has saved to the next.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from aegaeon.core.kv_shape import KvShape
from aegaeon.device.common.shared_memory import create_memfd
from aegaeon.memory.block_table import BlockTables
from aegaeon.memory.slab_cache import SlabCache


class NodeKv:
    """Block tables of the requests of a node.

    ``total_bytes`` is a multiple of ``slab_bytes``; every shape must fit a slab, else ``BlockTooLargeError``.
    """

    def __init__(self, total_bytes: int, slab_bytes: int, shapes: Iterable[KvShape]) -> None:
        self._slabs = SlabCache(total_bytes, slab_bytes)
        for shape in shapes:
            self._slabs.register(shape)
        self._tables = BlockTables(self._slabs)
        self.total_bytes = total_bytes
        self.fd = create_memfd("the KV slab cache", total_bytes, flag="--kv-cache")

    def open(self, key: str, shape: KvShape) -> None:
        """Have a table, empty at first; an open one stays as it is."""
        if key not in self._tables:
            self._tables.add(key, shape)

    def adopt(self, key: str, shape: KvShape, model: str, token_ids: Sequence[int]) -> int:
        """Open a table with the KV that there is of these tokens: of how many of them, from the start."""
        self.open(key, shape)
        return 0

    def extend(self, key: str, tokens: int) -> tuple[int, ...]:
        """Let the table cover ``tokens`` tokens: the new blocks. ``OutOfSlabsError`` changes nothing."""
        return self._tables.grow(key, tokens)

    def blocks(self, key: str) -> tuple[int, ...]:
        """The table: byte offsets in the arena."""
        return self._tables.blocks(key)

    def free(self, key: str) -> None:
        """Close a table; its blocks are free. Unknown keys are ignored."""
        if key in self._tables:
            self._tables.release(key)

    @property
    def used_bytes(self) -> int:
        """Bytes of blocks that requests own."""
        return self._slabs.used_bytes

    @property
    def assigned_bytes(self) -> int:
        """Bytes of slabs that serve a shape."""
        return self._slabs.assigned_bytes

    def check_integrity(self) -> None:
        """Raises ``LedgerError`` when the books do not balance."""
        self._tables.check_integrity()

    def close(self) -> None:
        os.close(self.fd)
