"""Which blocks of the slab cache hold a request's KV, in order; blocks may be shared between requests.

A copy that is under way can be a holder too: ``fork`` the
table for it and ``release`` that when the copy has landed, and none of its blocks is used again before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from aegaeon.core.kv_shape import KvShape
from aegaeon.memory.errors import LedgerError
from aegaeon.memory.slab_cache import BlockOffset, SlabCache


@dataclass(frozen=True, slots=True)
class CopyOrder:
    """Copy one block's bytes before the next write; the source must not be written or freed until that is done."""

    source: BlockOffset
    destination: BlockOffset


@dataclass(slots=True)
class BlockTable:
    """The blocks of one request: block ``k`` holds its tokens ``k * block_tokens`` and on."""

    shape: KvShape
    blocks: list[BlockOffset] = field(default_factory=list)


class BlockTables:
    """The tables of all requests, and how many of them hold each block. The only user of its slab cache.

    A block is freed when its last holder lets go. Methods that allocate raise ``OutOfSlabsError`` and change nothing
    then; naming a request that has no table, or adding one twice, raises ``LedgerError``.
    """

    def __init__(self, slab_cache: SlabCache) -> None:
        self._cache = slab_cache
        self._tables: dict[str, BlockTable] = {}
        self._holders: dict[BlockOffset, int] = {}
        self._kept: dict[BlockOffset, KvShape] = {}

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._tables

    def __len__(self) -> int:
        return len(self._tables)

    @property
    def request_ids(self) -> tuple[str, ...]:
        """Everyone with a table, in order of arrival."""
        return tuple(self._tables)

    def shape(self, request_id: str) -> KvShape:
        """The shape of a request's blocks."""
        return self._table(request_id).shape

    def blocks(self, request_id: str) -> tuple[BlockOffset, ...]:
        """A request's blocks, in token order."""
        return tuple(self._table(request_id).blocks)

    def capacity_tokens(self, request_id: str) -> int:
        """Tokens that a request's blocks can hold."""
        table = self._table(request_id)
        return len(table.blocks) * table.shape.block_tokens

    def holders(self, block: BlockOffset) -> int:
        """How many tables hold a block; 0 where it is free."""
        return self._holders.get(block, 0)

    def add(self, request_id: str, shape: KvShape) -> None:
        """Open an empty table with blocks of a registered shape."""
        self._require_new(request_id)
        self._tables[request_id] = BlockTable(shape)

    def grow(self, request_id: str, tokens: int) -> tuple[BlockOffset, ...]:
        """See to it that ``tokens`` tokens (in all) fit; returns the blocks that were added, none where they did."""
        table = self._table(request_id)
        added = self._cache.allocate(table.shape, max(0, table.shape.blocks_for(tokens) - len(table.blocks)))
        self._holders.update(dict.fromkeys(added, 1))
        table.blocks.extend(added)
        return added

    def write(self, request_id: str, position: int) -> CopyOrder | None:
        """Make the block of the token at ``position`` the request's own, before it is written.

        None where it is already. Where the block is shared the request gets a new one in its place, to which the
        shared one's bytes must be copied first (copy on write).
        """
        table = self._table(request_id)
        if not 0 <= position < self.capacity_tokens(request_id):
            raise LedgerError(
                f"request {request_id} writes token {position}, but has room for {self.capacity_tokens(request_id)}"
            )
        index = position // table.shape.block_tokens
        source = table.blocks[index]
        if self._holders[source] == 1:
            return None
        (destination,) = self._cache.allocate(table.shape, 1)
        self._holders[destination] = 1
        self._holders[source] -= 1
        table.blocks[index] = destination
        return CopyOrder(source, destination)

    def fork(self, request_id: str, child_id: str) -> None:
        """Open a table for ``child_id`` that holds the same blocks."""
        parent = self._table(request_id)
        self._require_new(child_id)
        for block in parent.blocks:
            self._holders[block] += 1
        self._tables[child_id] = BlockTable(parent.shape, list(parent.blocks))

    @property
    def kept(self) -> Mapping[BlockOffset, KvShape]:
        """Blocks that are kept for whoever adopts them."""
        return self._kept

    @property
    def kept_bytes(self) -> int:
        """Bytes of these."""
        return sum(shape.block_bytes for shape in self._kept.values())

    def restore(self, blocks: Mapping[BlockOffset, KvShape]) -> None:
        """Keep blocks that somebody else has left in the arena, in tables and a cache that have none yet."""
        self._cache.restore(blocks)
        self._kept.update(blocks)

    def adopt(self, request_id: str, blocks: Sequence[BlockOffset]) -> None:
        """Let kept blocks be a request's, behind those that it has. Raises ``LedgerError`` where one is not kept."""
        table = self._table(request_id)
        if len(set(blocks)) < len(blocks) or any(self._kept.get(block) != table.shape for block in blocks):
            raise LedgerError(f"request {request_id} cannot adopt {list(blocks)}: not kept, or of another shape")
        for block in blocks:
            del self._kept[block]
        self._holders.update(dict.fromkeys(blocks, 1))
        table.blocks.extend(blocks)

    def drop_kept(self) -> None:
        """Free the blocks that nobody has adopted."""
        self._cache.free(sorted(self._kept))
        self._kept.clear()

    def truncate(self, request_id: str, tokens: int) -> None:
        """Let go of the blocks after those that the first ``tokens`` tokens need."""
        if tokens < 0:
            raise LedgerError(f"request {request_id} is cut to {tokens} tokens")
        table = self._table(request_id)
        keep = table.shape.blocks_for(tokens)
        self._let_go(reversed(table.blocks[keep:]))
        del table.blocks[keep:]

    def release(self, request_id: str) -> None:
        """Let go of all blocks of a request and forget it."""
        self.truncate(request_id, 0)
        del self._tables[request_id]

    def check_integrity(self) -> None:
        """Raise ``LedgerError`` unless every live block is held, every held one live, and the counts are right."""
        self._cache.check_integrity()
        counted = Counter(block for table in self._tables.values() for block in table.blocks)
        if counted != self._holders:
            wrong = {block for block, _ in counted.items() ^ self._holders.items()}
            raise LedgerError(f"wrong numbers of holders for blocks {sorted(wrong)}")
        for request_id, table in self._tables.items():
            dead = [block for block in table.blocks if not self._cache.is_live(table.shape, block)]
            if dead or len(set(table.blocks)) != len(table.blocks):
                raise LedgerError(f"request {request_id} holds free blocks {dead}, or one of {table.blocks} twice")
        if any(not self._cache.is_live(shape, block) for block, shape in self._kept.items()):
            raise LedgerError("a block is kept that is free")
        owned = len(self._holders) + len(self._kept)
        if self._cache.live_blocks != owned or self._holders.keys() & self._kept.keys():
            raise LedgerError(f"{self._cache.live_blocks} blocks are live, but {owned} have a holder or are kept")

    def _table(self, request_id: str) -> BlockTable:
        if request_id not in self._tables:
            raise LedgerError(f"request {request_id} has no block table")
        return self._tables[request_id]

    def _require_new(self, request_id: str) -> None:
        if request_id in self._tables:
            raise LedgerError(f"request {request_id} has a block table already")

    def _let_go(self, blocks: Iterable[BlockOffset]) -> None:
        freed = []
        for block in blocks:
            self._holders[block] -= 1
            if not self._holders[block]:
                del self._holders[block]
                freed.append(block)
        self._cache.free(freed)
