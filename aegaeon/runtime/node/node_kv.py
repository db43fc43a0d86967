"""The node's KV slab cache: the ledger of its blocks, and the shared memory they lie in.

The memory outlives any worker: an instance that dies leaves the KV it has saved to the next. It can outlive the driver,
too, with the index of what is in it: then requests that come again find their KV.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence

from aegaeon.core.kv_shape import KvShape
from aegaeon.device.common.shared_memory import create_memfd
from aegaeon.memory.block_table import BlockTables
from aegaeon.memory.slab_cache import SlabCache
from aegaeon.memory.slab_ledger import OutOfSlabsError
from aegaeon.memory.token_hash import block_names, root_name
from aegaeon.runtime.node.core.blocks import TokenIds
from aegaeon.runtime.node.kv_index import KvIndex


class NodeKv:
    """Block tables of the requests of a node.

    ``total_bytes`` is a multiple of ``slab_bytes``; every shape must fit a slab, else ``BlockTooLargeError``.
    ``heirlooms``: of the cache of a driver that has ended. Blocks that it left are kept until ``forget_rest``, or until
    room is needed; raises ``ForeignIndexError`` where it was another cache.
    """

    def __init__(
        self,
        total_bytes: int,
        slab_bytes: int,
        shapes: Iterable[KvShape],
        heirlooms: tuple[int, int] | None = None,
    ) -> None:
        shapes = tuple(shapes)
        slabs = SlabCache(total_bytes, slab_bytes)
        for shape in shapes:
            slabs.register(shape)
        self._slabs = slabs
        self._tables = BlockTables(slabs)
        self._whole: dict[str, int] = {}  # by table: how many of its blocks have a name
        self._rest: defaultdict[bytes, list[int]] = defaultdict(list)  # blocks that were left, by name
        self.total_bytes = total_bytes
        if heirlooms is None:
            self._index = KvIndex(total_bytes, slab_bytes, shapes)
            self.fd = create_memfd("the KV slab cache", total_bytes, flag="--kv-cache")
        else:
            self._index = KvIndex(total_bytes, slab_bytes, shapes, heirlooms[1])
            self.fd = os.dup(heirlooms[0])
            self._take_rest()

    def _take_rest(self) -> None:
        found = self._index.whole_blocks()
        self._tables.restore({block: shape for block, (shape, _) in found.items()})
        for block, (_, name) in found.items():
            self._rest[name].append(block)

    @property
    def tables(self) -> tuple[str, ...]:
        """The keys of the open tables."""
        return self._tables.request_ids

    def open(self, key: str, shape: KvShape) -> None:
        """Have a table, empty at first; an open one stays as it is."""
        if key not in self._tables:
            self._tables.add(key, shape)
            self._whole[key] = 0

    def adopt(self, key: str, shape: KvShape, model: str, token_ids: Sequence[int]) -> int:
        """Open a table with the KV of these tokens that another driver has left: of how many of them, from the start.

        It is not of all: the last one is fed for the next to be sampled.
        """
        self.open(key, shape)
        blocks = []
        if self._rest:
            for name in block_names(root_name(model), token_ids[:-1], shape.block_tokens):
                if not self._rest.get(name):
                    break
                blocks.append(self._rest[name].pop())
        self._tables.adopt(key, blocks)
        self._whole[key] = len(blocks)
        return len(blocks) * shape.block_tokens

    def forget_rest(self) -> None:
        """Free what was left and nobody has adopted."""
        for block, shape in self._tables.kept.items():
            self._index.clear(shape, (block,))
        self._tables.drop_kept()
        self._rest.clear()

    def extend(self, key: str, tokens: int) -> tuple[int, ...]:
        """Let the table cover ``tokens`` tokens: the new blocks. ``OutOfSlabsError`` changes nothing."""
        try:
            return self._tables.grow(key, tokens)
        except OutOfSlabsError:
            if not self._rest:
                raise
            self.forget_rest()
            return self._tables.grow(key, tokens)

    def note(self, key: str, model: str, token_ids: TokenIds, kv_tokens: int) -> None:
        """The KV of ``kv_tokens`` tokens is safe, and no more is to be relied on."""
        if key not in self._tables:
            return
        shape, blocks = self._tables.shape(key), self._tables.blocks(key)
        before, after = self._whole[key], min(kv_tokens // shape.block_tokens, len(blocks))
        self._index.clear(shape, blocks[after:before])
        if after > before:
            last = self._index.name_of(shape, blocks[before - 1]) if before else root_name(model)
            ids = token_ids(before * shape.block_tokens, after * shape.block_tokens)
            for block, name in zip(blocks[before:after], block_names(last, ids, shape.block_tokens), strict=True):
                self._index.set_name(shape, block, name)
        self._whole[key] = after

    def blocks(self, key: str) -> tuple[int, ...]:
        """The table: byte offsets in the arena."""
        return self._tables.blocks(key)

    def free(self, key: str) -> None:
        """Close a table; its blocks are free. Unknown keys are ignored."""
        if key in self._tables:
            self._index.clear(self._tables.shape(key), self._tables.blocks(key)[: self._whole.pop(key)])
            self._tables.release(key)

    def heirlooms(self) -> tuple[int, int]:
        """Descriptors of memory and index for whoever is to take over; the caller closes them."""
        return os.dup(self.fd), os.dup(self._index.fd)

    @property
    def used_bytes(self) -> int:
        """Bytes of blocks that requests own."""
        return self._slabs.used_bytes - self._tables.kept_bytes

    @property
    def assigned_bytes(self) -> int:
        """Bytes of slabs that serve a shape."""
        return self._slabs.assigned_bytes

    def check_integrity(self) -> None:
        """Raises ``LedgerError`` when the books do not balance."""
        self._tables.check_integrity()

    def close(self) -> None:
        os.close(self.fd)
        self._index.close()
