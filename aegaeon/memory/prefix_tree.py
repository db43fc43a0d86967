"""Blocks of KV by what they hold: a tree per model, in which a block follows on the block with the tokens before it.

A block here is *held* while a request under way goes through it, and *kept* when nobody does. A kept block is room: the
least valuable one without children is given up whenever somebody needs a block (``evict``). So the blocks of a prefix
that can be found are all there.

    root name -> A(held 2) -> B(held 1) -> C(kept) -> D(kept, no child: may go)
                           -> E(held 1)

A name is a hash of tokens (see ``token_hash``). Two blocks of one name are taken for the same only where what they
follow on is the same, too; whether their own tokens are is for whoever knows tokens to say.

Does not know where blocks lie, their tokens, or who holds them: names, and an order of use.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from heapq import heapify, heappop, heappush

from aegaeon.memory.errors import LedgerError
from aegaeon.memory.eviction import Eviction

_Candidate = tuple[float, int, int, "PrefixNode"]
"""(value, when it was last used, stamp, block): of two of one value the one that was used last goes last."""
_FEW_CANDIDATES = 64


class PrefixNode:
    """A block in its place. ``parent``: the block before it, or the root's name. ``holders``: requests that end here,
    and children that are held.

    ``used``, ``age`` (the eviction policy's at that time) and ``uses``: of the block and of all that followed on it and
    is gone. ``stamp``: of its newest entry among those that may go; 0 where it has none.
    """

    __slots__ = (
        "__weakref__",
        "age",
        "block",
        "children",
        "holders",
        "name",
        "parent",
        "size_bytes",
        "stamp",
        "used",
        "uses",
        "worth",
    )

    def __init__(self, block: int, size_bytes: int, name: bytes, parent: PrefixNode | bytes, worth: float) -> None:
        self.block = block
        self.size_bytes = size_bytes
        self.name = name
        self.parent = parent
        self.worth = worth
        self.age = 0.0
        self.children = self.holders = self.used = self.uses = self.stamp = 0


class PrefixTree:
    """All named blocks, by name. Misuse raises ``LedgerError``."""

    def __init__(self, eviction: Eviction) -> None:
        self._eviction = eviction
        self._nodes: dict[bytes, PrefixNode] = {}
        self._candidates: list[_Candidate] = []  # a heap; an entry is stale unless it has its node's stamp
        self._clock = 0
        self._stamp = 0
        self.kept_bytes = 0  # of blocks that nobody holds

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[PrefixNode]:
        return iter(self._nodes.values())

    def get(self, name: bytes) -> PrefixNode | None:
        """The block of that name."""
        return self._nodes.get(name)

    def find(self, root: bytes, names: Iterable[bytes]) -> list[PrefixNode]:
        """The longest run of leading blocks that is here."""
        run: list[PrefixNode] = []
        before: PrefixNode | bytes = root
        for name in names:
            node = self._nodes.get(name)
            if node is None or node.parent != before:
                break
            run.append(node)
            before = node
        return run

    def add(
        self, block: int, size_bytes: int, name: bytes, parent: PrefixNode | bytes, worth: float = 0.0
    ) -> PrefixNode:
        """A block that holds what ``name`` says, which no other does; ``parent`` holds what comes before. It is kept
        until somebody holds it; ``worth``: what keeping it is worth, as its eviction policy understands that."""
        if name in self._nodes:
            raise LedgerError(f"block {block} holds what block {self._nodes[name].block} holds already")
        worth = self._eviction.worth(worth, parent.worth if isinstance(parent, PrefixNode) else None)
        node = self._nodes[name] = PrefixNode(block, size_bytes, name, parent, worth)
        if isinstance(parent, PrefixNode):
            parent.children += 1
            parent.stamp = 0
        self.kept_bytes += size_bytes
        self._rest(node)
        return node

    def hold(self, node: PrefixNode) -> None:
        """A request goes through a block, and through all before it."""
        self._use(node)
        node.uses += 1
        place: PrefixNode | bytes = node
        while isinstance(place, PrefixNode):
            place.holders += 1
            if place.holders > 1:
                return
            place.stamp = 0
            self.kept_bytes -= place.size_bytes
            place = place.parent

    def let_go(self, node: PrefixNode) -> None:
        """It does so no more."""
        if not node.holders:
            raise LedgerError(f"nobody holds block {node.block}")
        self._use(node)
        place: PrefixNode | bytes = node
        while isinstance(place, PrefixNode):
            place.holders -= 1
            if place.holders:
                return
            self.kept_bytes += place.size_bytes
            if not place.children:
                self._rest(place)
            place = place.parent

    def move(self, before: PrefixNode, after: PrefixNode) -> None:
        """A request that went through one block, and all before it, goes through another of its path: one use."""
        self.hold(after)
        before.uses -= 1
        self.let_go(before)

    def evict(self) -> PrefixNode | None:
        """Forget the least valuable block that may go; None where there is none."""
        while self._candidates:
            value, _, stamp, node = heappop(self._candidates)
            if node.stamp == stamp:
                self._eviction.evicted(value)
                self._forget(node)
                return node
        return None

    def check_integrity(self) -> None:
        """Raise ``LedgerError`` unless children, holders and candidates agree."""
        children = dict.fromkeys(self._nodes.values(), 0)
        held_children = dict(children)
        for node in self._nodes.values():
            if isinstance(node.parent, PrefixNode):
                if self._nodes.get(node.parent.name) is not node.parent:
                    raise LedgerError(f"block {node.block} follows on block {node.parent.block}, which is gone")
                children[node.parent] += 1
                held_children[node.parent] += node.holders > 0
        open_stamps = {stamp for _, _, stamp, node in self._candidates if node.stamp == stamp}
        for node, count in children.items():
            if count != node.children or node.holders < held_children[node]:
                raise LedgerError(f"block {node.block} counts {node.children} children and {node.holders} holders")
            if (not count and not node.holders) != (node.stamp in open_stamps):
                raise LedgerError(f"block {node.block} may go, and nobody would find it, or the other way round")
        if self.kept_bytes != sum(node.size_bytes for node in self._nodes.values() if not node.holders):
            raise LedgerError(f"{self.kept_bytes} bytes are counted as kept")

    def _use(self, node: PrefixNode) -> None:
        self._clock += 1
        node.used, node.age = self._clock, self._eviction.age

    def _forget(self, node: PrefixNode) -> None:
        del self._nodes[node.name]
        self.kept_bytes -= node.size_bytes
        parent = node.parent
        if isinstance(parent, PrefixNode):
            parent.children -= 1
            parent.uses += node.uses
            if node.used > parent.used:
                parent.used, parent.age = node.used, node.age
            self._rest(parent)

    def _rest(self, node: PrefixNode) -> None:
        """It may go, if nobody holds it and nothing follows on it."""
        if node.children or node.holders:
            return
        self._stamp += 1
        node.stamp = self._stamp
        heappush(self._candidates, (self._eviction.value(node), node.used, self._stamp, node))
        if len(self._candidates) > 2 * len(self._nodes) + _FEW_CANDIDATES:
            self._candidates = [entry for entry in self._candidates if entry[3].stamp == entry[2]]
            heapify(self._candidates)
