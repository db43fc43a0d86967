"""The node's KV slab cache: the ledger of its blocks, and the shared memory they lie in.

The memory outlives any worker: an instance that dies leaves the KV it has saved to the next. It outlives requests: what
is whole is kept for others with the same tokens, as long as nobody needs the room. And it can outlive the driver, with
the index of what is in it: then requests that come again find their KV.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from weakref import WeakValueDictionary

from aegaeon.core.kv_shape import KvShape
from aegaeon.device.common.shared_memory import create_memfd
from aegaeon.memory.block_table import BlockTables, LeftBlock
from aegaeon.memory.eviction import EVICTIONS
from aegaeon.memory.prefix_tree import PrefixNode, PrefixTree
from aegaeon.memory.slab_cache import SlabCache
from aegaeon.memory.stored_block import StoredBlock
from aegaeon.memory.token_hash import next_name, packed
from aegaeon.runtime.node.core.blocks import TokenIds
from aegaeon.runtime.node.kv_index import KvIndex, WholeBlock
from aegaeon.runtime.wire.messages import KvBranch, KvCounts, KvNames
from aegaeon.scheduler.prompt_cost import SavedS

Version = Callable[[str], str]
"""``version(model)``: of its weights; empty for those that frontends name KV by."""


def _first_version(_model: str) -> str:
    """No weights change."""
    return ""


def worth_nothing(_model: str, _start: int, _end: int) -> float:
    """Nobody asks."""
    return 0.0


@dataclass(slots=True)
class _Sequence:
    """What a table's blocks are called: ``names`` as far as they are known. ``closed``: no more get one, since another
    sequence has the name of one of them."""

    model: str
    root: bytes
    names: list[bytes]
    closed: bool = False


class NodeKv:
    """Block tables of the requests of a node, and the blocks that are kept.

    ``total_bytes`` is a multiple of ``slab_bytes``; every shape must fit a slab, else ``BlockTooLargeError``.
    ``prefix_cache``: the policy by which kept blocks are given up, or ``"off"``. ``heirlooms``: of the cache of a
    driver that has ended; what it left is kept, too (``"off"``: until ``forget_rest``). Raises ``ForeignIndexError``
    where it was another cache.

    ``version``: of a model's weights; KV is found only by requests that come under the same one.
    """

    def __init__(
        self,
        total_bytes: int,
        slab_bytes: int,
        shapes: Iterable[KvShape],
        heirlooms: tuple[int, int] | None = None,
        *,
        prefix_cache: str = "lru",
        worth: SavedS = worth_nothing,
        version: Version = _first_version,
    ) -> None:
        shapes = tuple(shapes)
        slabs = SlabCache(total_bytes, slab_bytes)
        for shape in shapes:
            slabs.register(shape)
        self._slabs = slabs
        self._worth = worth
        self._version = version
        self._prefix_cache = prefix_cache
        self.reuses = prefix_cache != "off" or heirlooms is not None
        self._tree = PrefixTree(EVICTIONS.get(prefix_cache, EVICTIONS["lru"])())
        self._tables = BlockTables(slabs, self._tree)
        self._sequences: dict[str, _Sequence] = {}  # by table
        self._newest: WeakValueDictionary[bytes, PrefixNode] = WeakValueDictionary()  # by what is before, and a token
        self._shown: set[int] = set()  # blocks that somebody copies, who does not hold them
        self._evicted_blocks = 0
        self.total_bytes = total_bytes
        if heirlooms is None:
            self._index = KvIndex(total_bytes, slab_bytes, shapes)
            self.fd = create_memfd("the KV slab cache", total_bytes, flag="--kv-cache")
        else:
            self._index = KvIndex(total_bytes, slab_bytes, shapes, heirlooms[1])
            self.fd = os.dup(heirlooms[0])
            left = {one.block: LeftBlock(one.shape, one.name, one.before) for one in self._index.whole_blocks()}
            self._tables.restore(left)

    @property
    def tables(self) -> tuple[str, ...]:
        """The keys of the open tables."""
        return self._tables.request_ids

    def __contains__(self, key: object) -> bool:
        """Whether a table is open."""
        return key in self._sequences

    def open(self, key: str, model: str, shape: KvShape, names: KvNames, token_ids: Sequence[int]) -> int:
        """Open a table with the KV of these tokens that there is: of how many of them, from the start.

        It is not of all: the last one is fed for the next to be sampled.
        """
        sequence = self._sequence(model, names)
        most = (len(token_ids) - 1) // shape.block_tokens if self.reuses else 0
        tokens = packed(token_ids)
        self._extend_names(sequence, shape, tokens, most)
        found = self._tree.find(sequence.root, sequence.names[:most])
        run = found[: self._index.holding((node.block for node in found), tokens, 4 * shape.block_tokens)]
        self._tables.add(key, shape, sequence.root, run)
        self._sequences[key] = sequence
        return len(run) * shape.block_tokens

    def branch(self, key: str, token_ids: Sequence[int]) -> KvBranch | None:
        """A block with the KV of the first of these tokens, which follow on a table's named blocks and are no more
        than a block has; None where none is known. It is lent until it is taken back.

        Of several that begin with the same token the one that came last is known.
        """
        path, tokens = self._tables.named(key), packed(token_ids)
        before = path[-1] if path else self._sequences[key].root
        node = self._newest.get(_branching(before, tokens)) if self.reuses else None
        if node is None or node.parent != before or self._tree.get(node.name) is not node:
            return None
        return self._lent(node.block, self._index.agreeing(node.block, tokens))

    def branch_beside(self, key: str, other: str, start: int, tokens: int) -> KvBranch | None:
        """The block of another table that begins with its token ``start`` and holds so many of those that a table goes
        on with; lent likewise. None where the two are of other weights."""
        if self._sequences[key].root != self._sequences[other].root:
            return None
        return self._lent(self._tables.blocks(other)[start // self._tables.shape(other).block_tokens], tokens)

    def _lent(self, block: int, tokens: int) -> KvBranch:
        self._tables.lend(block)
        return KvBranch(block, tokens)

    def take_back(self, branch: KvBranch) -> None:
        """Nobody copies it any more."""
        self._tables.take_back(branch.block)

    def _sequence(self, model: str, names: KvNames) -> _Sequence:
        """With other weights than the names are of, nothing is called so."""
        version = self._version(model)
        if not version:
            return _Sequence(model, names.root, list(names.blocks))
        return _Sequence(model, next_name(names.root, version.encode()), [])

    def _extend_names(self, sequence: _Sequence, shape: KvShape, tokens: bytes, blocks: int, first: int = 0) -> None:
        """Have the names of so many blocks; ``tokens``: from the block ``first`` on."""
        names, size = sequence.names, 4 * shape.block_tokens
        for index in range(len(names), blocks):
            start = (index - first) * size
            names.append(next_name(names[-1] if names else sequence.root, tokens[start : start + size]))

    def extend(self, key: str, tokens: int) -> tuple[int, ...]:
        """Let the table cover ``tokens`` tokens: the new blocks. Kept blocks give way; ``OutOfSlabsError`` changes
        nothing of tables."""
        shape, missing = self._tables.shape(key), self._tables.missing_blocks(key, tokens)
        while not self._slabs.can_allocate(shape, missing) and self._evict():
            self._evicted_blocks += 1
        return self._tables.grow(key, tokens)

    def _evict(self) -> bool:
        block = self._tables.evict()
        if block is None:
            return False
        self._index.clear(block)
        self._shown.discard(block)
        return True

    def note(self, key: str, token_ids: TokenIds, kv_tokens: int) -> int:
        """The KV of ``kv_tokens`` tokens is safe, and no more is to be relied on; less may be left: of how many."""
        if key not in self._sequences:
            return kv_tokens
        block_tokens, sequence = self._tables.shape(key).block_tokens, self._sequences[key]
        before, after = len(self._tables.named(key)), kv_tokens // block_tokens
        if after < before:
            del sequence.names[after:]
            return self._tables.truncate(key, kv_tokens)
        if after > before and not sequence.closed:
            self._name(key, before, packed(token_ids(before * block_tokens, after * block_tokens)), after)
        return kv_tokens

    def _name(self, key: str, first: int, tokens: bytes, end: int) -> None:
        """Name a table's blocks up to ``end``; ``tokens``: from the block ``first`` on."""
        shape, sequence = self._tables.shape(key), self._sequences[key]
        self._extend_names(sequence, shape, tokens, end, first)
        size = 4 * shape.block_tokens
        for index in range(first, end):
            start = (index - first) * size
            if not self._name_block(key, index, tokens[start : start + size]):
                sequence.closed = True
                return

    def _name_block(self, key: str, index: int, tokens: bytes) -> bool:
        """False where another sequence has its name."""
        shape, sequence = self._tables.shape(key), self._sequences[key]
        name = sequence.names[index]
        known = self._tree.get(name)
        if known is not None and not self._index.holding((known.block,), tokens, len(tokens)):
            return False
        start = index * shape.block_tokens
        worth = self._worth(sequence.model, start, start + shape.block_tokens) / shape.block_bytes
        node = self._tables.name(key, name, worth)
        if node is not None and known is None:
            before = node.parent.block if isinstance(node.parent, PrefixNode) else node.parent
            self._index.set(WholeBlock(node.block, shape, name, before, tokens))
            self._newest[_branching(node.parent, tokens)] = node
        return node is not None

    def blocks(self, key: str) -> tuple[int, ...]:
        """The table: byte offsets in the arena."""
        return self._tables.blocks(key)

    def names(self, key: str) -> list[bytes]:
        """What the table's first block follows on, and its blocks are called, as far as that is known."""
        sequence = self._sequences[key]
        return [sequence.root, *sequence.names]

    def named(self, key: str) -> list[bytes]:
        """The names of the table's first blocks, which others find."""
        return [node.name for node in self._tables.named(key)]

    def show(self, name: bytes) -> StoredBlock | None:
        """A whole block for somebody to copy, who does not hold it: it may be given up and written to meanwhile."""
        node = self._tree.get(name)
        if node is None:
            return None
        self._shown.add(node.block)
        before = node.parent.name if isinstance(node.parent, PrefixNode) else node.parent
        return StoredBlock(name, before, self._index.tokens(node.block), node.block, node.size_bytes)

    def hide(self, block: StoredBlock) -> bool:
        """Whether it was left alone since it was shown."""
        alone = block.offset in self._shown
        self._shown.discard(block.offset)
        return alone

    def free(self, key: str) -> None:
        """Close a table: what is not kept is free. Unknown keys are ignored."""
        if key in self._sequences:
            del self._sequences[key]
            self._tables.release(key)
            self._drop_kept()

    def forget_rest(self) -> None:
        """Whoever has not come by now for what another driver left will not come."""
        self.reuses = self._prefix_cache != "off"
        self._drop_kept()

    def _drop_kept(self) -> None:
        """Where nothing is reused nothing is kept."""
        while not self.reuses and self._evict():
            pass

    def heirlooms(self) -> tuple[int, int]:
        """Descriptors of memory and index for whoever is to take over; the caller closes them."""
        return os.dup(self.fd), os.dup(self._index.fd)

    @property
    def counts(self) -> KvCounts:
        """What there is, and what was given up."""
        kept_bytes = self._tables.kept_bytes
        used_bytes = self._slabs.used_bytes - kept_bytes
        return KvCounts(used_bytes, kept_bytes, self._slabs.assigned_bytes, self.total_bytes, self._evicted_blocks)

    def check_integrity(self) -> None:
        """Raises ``LedgerError`` when the books do not balance."""
        self._tables.check_integrity()

    def close(self) -> None:
        os.close(self.fd)
        self._index.close()


def _branching(before: PrefixNode | bytes, tokens: bytes) -> bytes:
    """What a block follows on, and its first token."""
    return (before.name if isinstance(before, PrefixNode) else before) + tokens[:4]
