"""Which state goes next: small policies, by the names that Marconi's artifact gives them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import inf

from sim.study.marconi.hybrid_model import HybridModel
from sim.study.marconi.radix_tree import StateNode
from sim.study.marconi.sorted_nodes import SortedNodes


class NodeEviction(ABC):
    """Is told of every node that is new, has changed or is gone, and says which may go next.

    ``refreshes_path``: whether the nodes above a reused one count as reused, too.
    """

    refreshes_path = False

    def __init__(self) -> None:
        self._by_use = SortedNodes()

    @property
    def oldest(self) -> float:
        """When that was last used which was not used for longest, of what may go; never where nothing may."""
        return self._by_use.least if len(self._by_use) else inf

    def changed(self, node: StateNode) -> None:
        """It is new, was used, or has another parent or other children."""
        if self._may_go(node):
            self._by_use.put(node, node.used)
        else:
            self.gone(node)

    def gone(self, node: StateNode) -> None:
        """It is there no more."""
        self._by_use.drop(node)

    @abstractmethod
    def choose(self, now: int) -> StateNode | None:
        """The node that is worth least; None where none may go."""

    @abstractmethod
    def _may_go(self, node: StateNode) -> bool: ...


class LeastRecentLeaf(NodeEviction):
    """LRU over leaves (SGLang+, ``V1``)."""

    refreshes_path = True

    def choose(self, now: int) -> StateNode | None:
        return self._by_use.first if len(self._by_use) else None

    def _may_go(self, node: StateNode) -> bool:
        return node.parent is not None and not node.children


class FlopEfficiency(NodeEviction):
    """Recency plus ``alpha`` times FLOP efficiency, both from 0 to 1 over all nodes with at most one child (Marconi).

    Recency is 1 / (time since the last use). Efficiency is what the node saves beyond its parent over the bytes of its
    state and of the whole prefix, though most of these may be other nodes'.
    """

    def __init__(self, model: HybridModel, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha
        self._model = model
        self._by_efficiency = SortedNodes()

    def changed(self, node: StateNode) -> None:
        super().changed(node)
        if node in self._by_use:
            saved = self._model.flops(node.end) - self._model.flops(node.before)
            self._by_efficiency.put(node, saved / self._bytes(node))

    def gone(self, node: StateNode) -> None:
        super().gone(node)
        self._by_efficiency.drop(node)

    def choose(self, now: int) -> StateNode | None:
        """Looked for from the least efficient node on, up to where efficiency alone is worth more than the best."""
        if not len(self._by_use):
            return None
        oldest = _recency(now, self._by_use.least)
        scale = _scale(_recency(now, self._by_use.most) - oldest)
        least = self._by_efficiency.least
        weight = self.alpha * _scale(self._by_efficiency.most - least)
        best = self._by_use.first
        value = weight * (self._by_efficiency.number(best) - least)
        for efficiency, node in self._by_efficiency:
            worth = weight * (efficiency - least)
            if worth >= value:
                break
            worth += scale * (_recency(now, node.used) - oldest)
            if worth < value:
                best, value = node, worth
        return best

    def _may_go(self, node: StateNode) -> bool:
        return node.parent is not None and len(node.children) <= 1

    def _bytes(self, node: StateNode) -> float:
        return self._model.state_bytes + self._model.kv_bytes * node.end


class FlopsPerByteFreed(FlopEfficiency):
    """The same, where efficiency is over the bytes that giving up the node would free."""

    def _bytes(self, node: StateNode) -> float:
        kv = 0 if node.children else self._model.kv_bytes * node.own_tokens
        return self._model.state_bytes + kv


class StaleFirst(FlopEfficiency):
    """Marconi's, but what was not used for ``patience`` goes before anything else: recency as Marconi has it is next to
    nothing after a few dozen requests, and an efficient node that nobody asks for again would stay for ever."""

    patience = inf

    def choose(self, now: int) -> StateNode | None:
        if self.oldest < now - self.patience:
            return self._by_use.first
        return super().choose(now)


def _recency(now: int, used: float) -> float:
    return 1.0 / max(1.0, now - used)


def _scale(spread: float) -> float:
    return 1.0 / spread if spread > 0 else 0.0
