"""Which blocks of the slab cache hold a request's KV, in order; whole blocks may be shared between requests.

::

    table of a request:  | block | block | block | block | block |
                           named: in the tree      its own

A request's own blocks are written to by nobody else, and free again when it leaves. When all KV of a block is safe it
can be *named* by what it holds: then nobody writes to it any more, other requests may share it, and it is kept, as room
for whoever needs a block, when the last of them has left (see ``prefix_tree``). A block that is *lent* is nobody
else's until it is taken back, even when its request has left, or it has had to give way: somebody is reading it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from aegaeon.core.kv_shape import KvShape
from aegaeon.memory.errors import LedgerError
from aegaeon.memory.eviction import Lru
from aegaeon.memory.prefix_tree import PrefixNode, PrefixTree
from aegaeon.memory.slab_cache import BlockOffset, SlabCache


@dataclass(frozen=True, slots=True)
class LeftBlock:
    """A named block that somebody else has left; ``before``: the block that it follows on, or the root's name."""

    shape: KvShape
    name: bytes
    before: BlockOffset | bytes


@dataclass(slots=True)
class BlockTable:
    """The blocks of one request: block ``k`` holds its tokens ``k * block_tokens`` and on. ``root``: what the first
    follows on.

    ``path``: for its first tokens, where the tree has them. A block of the table is not the tree's where two requests
    computed the same at the same time: then it is ``own``, like those that have no name yet.
    """

    shape: KvShape
    root: bytes = b""
    blocks: list[BlockOffset] = field(default_factory=list)
    path: list[PrefixNode] = field(default_factory=list)
    own: set[BlockOffset] = field(default_factory=set)


class BlockTables:
    """The tables of all requests. The only user of its slab cache and of its tree.

    ``grow`` raises ``OutOfSlabsError`` and changes nothing then; naming a request that has no table, or adding one
    twice, raises ``LedgerError``.
    """

    def __init__(self, slab_cache: SlabCache, tree: PrefixTree | None = None) -> None:
        self._cache = slab_cache
        self._tree = PrefixTree(Lru()) if tree is None else tree
        self._tables: dict[str, BlockTable] = {}
        self._lent: Counter[BlockOffset] = Counter()
        self._outlived: set[BlockOffset] = set()  # lent ones that would be free

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

    def named(self, request_id: str) -> Sequence[PrefixNode]:
        """The nodes where the tree has a request's first tokens, block by block."""
        return self._table(request_id).path

    def capacity_tokens(self, request_id: str) -> int:
        """Tokens that a request's blocks can hold."""
        table = self._table(request_id)
        return len(table.blocks) * table.shape.block_tokens

    def missing_blocks(self, request_id: str, tokens: int) -> int:
        """Blocks that a request lacks for ``tokens`` tokens in all."""
        table = self._table(request_id)
        return max(0, table.shape.blocks_for(tokens) - len(table.blocks))

    def add(self, request_id: str, shape: KvShape, root: bytes = b"", found: Sequence[PrefixNode] = ()) -> None:
        """Open a table with blocks of a registered shape; it begins with a path of the tree."""
        if request_id in self._tables:
            raise LedgerError(f"request {request_id} has a block table already")
        table = BlockTable(shape, root, [node.block for node in found], list(found))
        if found:
            self._tree.hold(found[-1])
        self._tables[request_id] = table

    def grow(self, request_id: str, tokens: int) -> tuple[BlockOffset, ...]:
        """See to it that ``tokens`` tokens (in all) fit; returns the blocks that were added, none where they did."""
        table = self._table(request_id)
        added = self._cache.allocate(table.shape, self.missing_blocks(request_id, tokens))
        table.own.update(added)
        table.blocks.extend(added)
        return added

    def name(self, request_id: str, name: bytes, worth: float = 0.0) -> PrefixNode | None:
        """The request's next block without a name is whole and safe: returns where the tree has it now.

        Where there is a block of that name already this one stays the request's own; None where that one follows on
        something else. Whether its tokens are the same is to be asked before.
        """
        table = self._table(request_id)
        if len(table.path) == len(table.blocks):
            raise LedgerError(f"request {request_id} has no block left to name")
        block, before = table.blocks[len(table.path)], table.path[-1] if table.path else table.root
        node = self._tree.get(name)
        if node is None:
            node = self._tree.add(block, table.shape.block_bytes, name, before, worth)
            table.own.remove(block)
        elif node.parent != before:
            return None
        self._step(table, node)
        return node

    def _step(self, table: BlockTable, node: PrefixNode) -> None:
        """A table's path goes one block further."""
        if table.path:
            self._tree.move(table.path[-1], node)
        else:
            self._tree.hold(node)
        table.path.append(node)

    def truncate(self, request_id: str, tokens: int) -> int:
        """Let go of blocks after those that the first ``tokens`` tokens need; of how many of these the KV is left.

        A block that they do not fill is left where it is the request's own, to be written to again.
        """
        if tokens < 0:
            raise LedgerError(f"request {request_id} is cut to {tokens} tokens")
        table = self._table(request_id)
        whole = min(len(table.path), tokens // table.shape.block_tokens)
        self._step_back(table, whole)
        keep = table.shape.blocks_for(tokens)
        if not table.own.issuperset(table.blocks[whole:keep]):
            keep = whole
        self._free_own(table, table.blocks[keep:])
        del table.blocks[keep:]
        return min(tokens, self.capacity_tokens(request_id))

    def _step_back(self, table: BlockTable, whole: int) -> None:
        """A table's path is cut to its first blocks."""
        if whole < len(table.path):
            end = table.path[-1]
            del table.path[whole:]
            if table.path:
                self._tree.move(end, table.path[-1])
            else:
                self._tree.let_go(end)

    def _free_own(self, table: BlockTable, blocks: Sequence[BlockOffset]) -> None:
        own = [block for block in reversed(blocks) if block in table.own]
        table.own.difference_update(own)
        self._free(own)

    def _free(self, blocks: Sequence[BlockOffset]) -> None:
        self._outlived.update(block for block in blocks if block in self._lent)
        self._cache.free(block for block in blocks if block not in self._lent)

    def release(self, request_id: str) -> None:
        """Let go of all blocks of a request and forget it."""
        self.truncate(request_id, 0)
        del self._tables[request_id]

    def lend(self, block: BlockOffset) -> None:
        """Somebody reads a live block, until it is taken back as often as it was lent."""
        self._lent[block] += 1

    def take_back(self, block: BlockOffset) -> None:
        """One who read it does so no more."""
        self._lent[block] -= 1
        if not self._lent[block]:
            del self._lent[block]
            if block in self._outlived:
                self._outlived.remove(block)
                self._cache.free((block,))

    # --- what nobody holds ------------------------------------------------------------------------------------------

    @property
    def kept_bytes(self) -> int:
        """Bytes of named blocks that nobody holds."""
        return self._tree.kept_bytes

    def restore(self, left: Mapping[BlockOffset, LeftBlock]) -> None:
        """Keep blocks that somebody else has left in the arena, each after the one that it follows on, in tables and a
        cache that have none yet. Raises ``LedgerError``."""
        self._cache.restore({block: one.shape for block, one in left.items()})
        nodes: dict[BlockOffset, PrefixNode] = {}
        for block, one in left.items():
            before = one.before if isinstance(one.before, bytes) else nodes[one.before]
            nodes[block] = self._tree.add(block, one.shape.block_bytes, one.name, before)

    def evict(self) -> BlockOffset | None:
        """Free the least valuable block that nobody holds; None where there is none."""
        node = self._tree.evict()
        if node is None:
            return None
        self._free((node.block,))
        return node.block

    def check_integrity(self) -> None:
        """Raise ``LedgerError`` unless every live block is one table's own, in the tree or only lent, every table is
        whole, and nothing is lent where there is none."""
        self._cache.check_integrity()
        self._tree.check_integrity()
        for request_id, table in self._tables.items():
            self._check_table(request_id, table)
        owned = Counter(block for table in self._tables.values() for block in table.own)
        owned.update(node.block for node in self._tree)
        owned.update(self._outlived)
        if max(owned.values(), default=1) > 1 or self._cache.live_blocks != len(owned):
            twice = sorted(block for block, count in owned.items() if count > 1)
            raise LedgerError(f"{self._cache.live_blocks} blocks are live, {len(owned)} are owned, {twice} twice")
        if self._lent and not self._tables:
            raise LedgerError(f"blocks {sorted(self._lent)} are lent, and there is nobody to read them")
        holders = Counter(table.path[-1] for table in self._tables.values() if table.path)
        holders.update(node.parent for node in self._tree if node.holders and isinstance(node.parent, PrefixNode))
        wrong = [node.block for node in self._tree if node.holders != holders[node]]
        if wrong:
            raise LedgerError(f"wrong numbers of holders for blocks {wrong}")

    def _check_table(self, request_id: str, table: BlockTable) -> None:
        dead = [block for block in table.blocks if not self._cache.is_live(table.shape, block)]
        if dead or len(set(table.blocks)) != len(table.blocks):
            raise LedgerError(f"request {request_id} has free blocks {dead}, or one of {table.blocks} twice")
        for index, block in enumerate(table.blocks):
            if block not in table.own and (index >= len(table.path) or table.path[index].block != block):
                raise LedgerError(f"request {request_id} has block {block}, which is neither its own nor named")

    def _table(self, request_id: str) -> BlockTable:
        if request_id not in self._tables:
            raise LedgerError(f"request {request_id} has no block table")
        return self._tables[request_id]
