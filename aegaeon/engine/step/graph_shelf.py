"""The graphs of a process: at most so many bytes of them; those not replayed for the longest time go first."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Hashable

from aegaeon.device.common.graphs import Graph

logger = logging.getLogger(__name__)


class GraphShelf:
    """Graphs by key, of ``budget_bytes`` together."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._graphs: OrderedDict[Hashable, Graph] = OrderedDict()

    @property
    def used_bytes(self) -> int:
        """Device memory that the graphs took when they were captured."""
        return sum(graph.size_bytes for graph in self._graphs.values())

    def __len__(self) -> int:
        return len(self._graphs)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._graphs

    def get(self, key: Hashable) -> Graph | None:
        """The graph, as one that is about to be replayed."""
        graph = self._graphs.get(key)
        if graph is not None:
            self._graphs.move_to_end(key)
        return graph

    def put(self, key: Hashable, graph: Graph) -> bool:
        """Keep a graph, at the cost of others; False where it alone is too large."""
        if graph.size_bytes > self._budget_bytes:
            logger.info("a graph of %d bytes is not kept: graphs may have %d", graph.size_bytes, self._budget_bytes)
            return False
        while self._graphs and self.used_bytes + graph.size_bytes > self._budget_bytes:
            self._graphs.popitem(last=False)
        self._graphs[key] = graph
        return True

    def drop(self, owner: Hashable) -> None:
        """Forget the graphs whose key (a tuple) begins with ``owner``."""
        for key in [key for key in self._graphs if isinstance(key, tuple) and key[0] == owner]:
            del self._graphs[key]
