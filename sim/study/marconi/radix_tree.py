"""A radix tree over sequences of tokens. Every node but the root stands for a prefix whose recurrent state is kept, and
has the KV of the tokens between its parent and itself.

A sequence is a tuple of pieces, (first token, how many): two sequences have a piece in common or differ at its first
token. A single token is a piece; whoever makes sequences up knows where they may part, and uses longer ones.

    root -> "system prompt" -> "question of A" (leaf)
                            -> "question of B" (leaf)

A state cannot be cut: of an edge that is matched in part nothing can be reused, and the match ends there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

TokenRun = tuple[int, int]
Tokens = tuple[TokenRun, ...]


def count_tokens(sequence: Tokens) -> int:
    """How many tokens a sequence has."""
    return sum(count for _, count in sequence)


class StateNode:
    """``edge``: its own tokens, which follow on its parent's. ``end``: tokens from the root to here. ``used``: when its
    state was last reused or made. ``serial``: nodes in the order in which they were made."""

    __slots__ = ("children", "edge", "end", "parent", "serial", "used")

    def __init__(self, edge: Tokens, parent: StateNode | None, end: int, used: int, serial: int) -> None:
        self.edge = edge
        self.parent = parent
        self.end = end
        self.used = used
        self.serial = serial
        self.children: dict[TokenRun, StateNode] = {}

    @property
    def before(self) -> int:
        """Tokens before its own."""
        return self.parent.end if self.parent is not None else 0

    @property
    def own_tokens(self) -> int:
        """Tokens whose KV it has."""
        return self.end - self.before

    @property
    def path(self) -> Iterator[StateNode]:
        """The node and those above it, without the root."""
        node = self
        while node.parent is not None:
            yield node
            node = node.parent


@dataclass(frozen=True, slots=True)
class Match:
    """How far a sequence is in a tree. ``node``: the deepest that it goes through; ``at``: its first piece after that.
    ``branch``: the child whose edge it shares the first ``shared`` pieces of, and no more."""

    node: StateNode
    at: int
    branch: StateNode | None = None
    shared: int = 0


class RadixTree:
    """Nodes come by ``add`` and go by ``remove``. ``kv_tokens``: of all edges."""

    def __init__(self) -> None:
        self.root = StateNode((), None, 0, 0, 0)
        self._made = 0
        self._nodes = 0
        self.kv_tokens = 0

    def __len__(self) -> int:
        return self._nodes

    def __iter__(self) -> Iterator[StateNode]:
        ahead = [*self.root.children.values()]
        while ahead:
            node = ahead.pop()
            ahead.extend(node.children.values())
            yield node

    def match(self, sequence: Tokens) -> Match:
        """The longest path that the sequence goes along."""
        node, at = self.root, 0
        while at < len(sequence):
            child = node.children.get(sequence[at])
            if child is None:
                break
            end = at + len(child.edge)
            if sequence[at:end] != child.edge:
                return Match(node, at, child, _shared(sequence[at:end], child.edge))
            node, at = child, end
        return Match(node, at)

    def add(self, sequence: Tokens, match: Match, now: int) -> list[StateNode]:
        """Keep a sequence whose match this is: a state where it leaves an edge, and one at its end. The nodes that are
        new or have changed."""
        node, at = match.node, match.at
        changed = [node]
        if match.branch is not None:
            changed += [match.branch, self._split(match.branch, match.shared, now)]
            node, at = changed[-1], at + match.shared
        if at < len(sequence):
            changed.append(self._append(node, sequence[at:], now))
        return changed

    def remove(self, node: StateNode) -> StateNode:
        """Give up a node's state: a leaf goes with its KV, an only child takes over that of a node above it. The node
        that has changed by that: the parent, or the child."""
        parent = node.parent
        if parent is None or len(node.children) > 1:
            raise ValueError("only a node with at most one child can go")
        self._nodes -= 1
        if not node.children:
            del parent.children[node.edge[0]]
            self.kv_tokens -= node.own_tokens
            return parent
        (child,) = node.children.values()
        child.edge = node.edge + child.edge
        child.parent = parent
        child.used = max(child.used, node.used)
        parent.children[child.edge[0]] = child
        return child

    def cut(self, leaf: StateNode, pieces: int) -> None:
        """Give up the last pieces of a leaf's edge, and not all of them."""
        left, gone = leaf.edge[:-pieces], count_tokens(leaf.edge[-pieces:])
        if leaf.children or not left:
            raise ValueError("only a part of a leaf can be cut off")
        leaf.edge = left
        leaf.end -= gone
        self.kv_tokens -= gone

    def check_integrity(self) -> None:
        """Raise ``ValueError`` unless edges, ends and counts agree."""
        nodes = list(self)
        for node in nodes:
            if not node.edge or node.own_tokens != count_tokens(node.edge):
                raise ValueError(f"a node of {node.end} tokens has an edge of {count_tokens(node.edge)}")
            if node.parent is None or node.parent.children.get(node.edge[0]) is not node:
                raise ValueError(f"a node of {node.end} tokens is not its parent's")
        if (len(nodes), sum(node.own_tokens for node in nodes)) != (self._nodes, self.kv_tokens):
            raise ValueError(f"{self._nodes} nodes and {self.kv_tokens} tokens are counted")

    def _split(self, node: StateNode, shared: int, now: int) -> StateNode:
        """A node in the middle of another's edge; both count as used now."""
        parent = node.parent
        assert parent is not None, "the root has no edge"
        upper = self._make(node.edge[:shared], parent, now)
        node.edge, node.parent, node.used = node.edge[shared:], upper, now
        upper.children[node.edge[0]] = node
        return upper

    def _append(self, parent: StateNode, edge: Tokens, now: int) -> StateNode:
        leaf = self._make(edge, parent, now)
        self.kv_tokens += leaf.own_tokens
        return leaf

    def _make(self, edge: Tokens, parent: StateNode, now: int) -> StateNode:
        self._made += 1
        self._nodes += 1
        node = parent.children[edge[0]] = StateNode(edge, parent, parent.end + count_tokens(edge), now, self._made)
        return node


def _shared(one: Tokens, other: Tokens) -> int:
    """How many leading pieces are equal, of two that are not: one may also be shorter."""
    pairs = zip(one, other, strict=False)
    return next((index for index, (left, right) in enumerate(pairs) if left != right), min(len(one), len(other)))
