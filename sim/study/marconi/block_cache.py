"""A cache of blocks with a state each, as engines with a paged KV cache would have it (``vLLM+``)."""

from __future__ import annotations

from sim.study.marconi.hybrid_model import HybridModel
from sim.study.marconi.node_eviction import LeastRecentLeaf
from sim.study.marconi.radix_tree import Match, RadixTree, TokenRun, Tokens

BLOCK_TOKENS = 32


class BlockNames:
    """Sequences of tokens as sequences of whole blocks: blocks have one name where all up to their end is the same."""

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._made = 0
        self._rests = [0]  # tokens of the block that has begun, by place
        self._after: dict[tuple[int, TokenRun], tuple[int, Tokens]] = {}

    def blocks(self, sequence: Tokens) -> Tokens:
        """A piece for each whole block."""
        place = 0
        found: list[TokenRun] = []
        for piece in sequence:
            known = self._after.get((place, piece))
            place, blocks = known if known is not None else self._extend(place, piece)
            found.extend(blocks)
        return tuple(found)

    def _extend(self, place: int, piece: TokenRun) -> tuple[int, Tokens]:
        whole, rest = divmod(self._rests[place] + piece[1], self._block_tokens)
        blocks = tuple((self._made + number, 1) for number in range(whole))
        self._made += whole
        self._rests.append(rest)
        step = self._after[place, piece] = (len(self._rests) - 1, blocks)
        return step


class BlockCache:
    """LRU over the last blocks. Never larger than ``capacity_bytes``: of a sequence the leading blocks are kept that
    fit. Its tree counts blocks where others count tokens."""

    def __init__(self, model: HybridModel, capacity_bytes: int, block_tokens: int = BLOCK_TOKENS) -> None:
        self.tree = RadixTree()
        self._block_tokens = block_tokens
        self._block_bytes = model.state_bytes + block_tokens * model.kv_bytes
        self._capacity = capacity_bytes // self._block_bytes
        self._names = BlockNames(block_tokens)
        self._eviction = LeastRecentLeaf()
        self._now = 0
        self.peak_bytes = 0

    @property
    def used_bytes(self) -> int:
        """Of the blocks that are kept."""
        return self.tree.kv_tokens * self._block_bytes

    def lookup(self, sequence: Tokens) -> int:
        """How many leading tokens can be reused; their blocks count as used now."""
        return self._use(self._names.blocks(sequence)).node.end * self._block_tokens

    def insert(self, sequence: Tokens) -> None:
        """Keep its blocks, as room allows."""
        blocks = self._names.blocks(sequence)
        match = self._use(blocks)
        room = self._make_room(len(blocks) - match.at)
        self._add(blocks[: match.at + room], match)
        self.peak_bytes = max(self.peak_bytes, self.used_bytes)

    def _use(self, blocks: Tokens) -> Match:
        """Where a sequence's blocks end that are here; an edge of which it uses a part is parted there."""
        self._now += 1
        match = self.tree.match(blocks)
        if match.branch is not None:
            used = match.branch.used
            self._add(blocks[: match.at + match.shared], match)
            match.branch.used = used
            self._eviction.changed(match.branch)
            match = self.tree.match(blocks)
        for node in match.node.path:
            node.used = self._now
            self._eviction.changed(node)
        return match

    def _add(self, blocks: Tokens, match: Match) -> None:
        for node in self.tree.add(blocks, match, self._now):
            self._eviction.changed(node)

    def _make_room(self, blocks: int) -> int:
        """For how many of them there is room, once blocks have gone that are not of the same sequence."""
        while (lacking := self.tree.kv_tokens + blocks - self._capacity) > 0:
            leaf = self._eviction.choose(self._now)
            if leaf is None or leaf.used == self._now:
                return blocks - lacking
            if lacking < len(leaf.edge):
                self.tree.cut(leaf, lacking)
            else:
                self._eviction.gone(leaf)
                self._eviction.changed(self.tree.remove(leaf))
        return blocks
