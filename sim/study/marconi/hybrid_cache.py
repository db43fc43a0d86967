"""A cache of states and KV for one hybrid model, with Marconi's admission: of each request the state at its end, and
the one where it left what was there."""

from __future__ import annotations

from math import inf

from sim.study.marconi.hybrid_model import HybridModel
from sim.study.marconi.node_eviction import NodeEviction
from sim.study.marconi.radix_tree import Match, RadixTree, StateNode, Tokens, count_tokens


class HybridCache:
    """Never larger than ``capacity_bytes``: a sequence that would not fit even alone is not kept.

    Time counts calls: a request looks its input up, and inserts input and output when it has been answered.
    """

    def __init__(self, model: HybridModel, capacity_bytes: int, eviction: NodeEviction) -> None:
        self.model = model
        self.eviction = eviction
        self.tree = RadixTree()
        self.evictions = 0
        self.peak_bytes = 0
        self._capacity_bytes = capacity_bytes
        self._now = 0

    @property
    def used_bytes(self) -> int:
        """Of states and KV that are kept."""
        return len(self.tree) * self.model.state_bytes + self.tree.kv_tokens * self.model.kv_bytes

    @property
    def patience(self) -> float:
        """For how long its oldest state has not been used: how long things stay here. For ever while all has fitted."""
        return self._now - self.eviction.oldest if self.evictions else inf

    def lookup(self, sequence: Tokens) -> int:
        """How many leading tokens can be reused; what is reused counts as used now."""
        self._now += 1
        node = self.tree.match(sequence).node
        if node.parent is not None:
            self._use(node)
        return node.end

    def insert(self, sequence: Tokens) -> None:
        """Keep a sequence, as room allows."""
        self._now += 1
        if self.model.state_bytes + count_tokens(sequence) * self.model.kv_bytes > self._capacity_bytes:
            return
        for node in self.tree.add(sequence, self._make_room(sequence), self._now):
            self.eviction.changed(node)
        self.peak_bytes = max(self.peak_bytes, self.used_bytes)

    def _use(self, node: StateNode) -> None:
        for reused in node.path if self.eviction.refreshes_path else (node,):
            reused.used = self._now
        self.eviction.changed(node)

    def _make_room(self, sequence: Tokens) -> Match:
        """Where the sequence is to be added, once others have gone."""
        match = self.tree.match(sequence)
        while self.used_bytes + self._need_bytes(sequence, match) > self._capacity_bytes:
            if self._evict() in (match.node, match.branch):
                match = self.tree.match(sequence)
        return match

    def _need_bytes(self, sequence: Tokens, match: Match) -> int:
        new = count_tokens(sequence[match.at + match.shared :])
        states = (match.branch is not None) + (new > 0)
        return states * self.model.state_bytes + new * self.model.kv_bytes

    def _evict(self) -> StateNode:
        node = self.eviction.choose(self._now)
        assert node is not None, "a cache that is too full has a node"
        self.evictions += 1
        self.eviction.gone(node)
        self.eviction.changed(self.tree.remove(node))
        return node
