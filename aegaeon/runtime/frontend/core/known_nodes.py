"""The nodes of the pool, by what they report, and which of them a request is sent to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from aegaeon.runtime.wire import messages as m
from aegaeon.scheduler.router import Router
from aegaeon.scheduler.routing import route


@dataclass(slots=True)
class KnownNode:
    """A node; ``frontend_id`` is what it knows us by, ``state`` its last report."""

    node_id: str
    frontend_id: str
    state: m.NodeState | None = None

    @property
    def load(self) -> Counter[str]:
        """Requests that it reported, by model."""
        load: Counter[str] = Counter()
        for model, count in (*self.state.waiting, *self.state.running) if self.state is not None else ():
            load[model] += count
        return load

    def is_warm(self, model: str) -> bool:
        """Whether it has the model's weights in memory."""
        if self.state is None:
            return False
        return model in self.state.weights_cached or any(model in one.resident for one in self.state.instances)


class KnownNodes:
    """Nodes in the order in which they came. ``away_since_s``: those that were lost and have not come back.

    ``make_router(nodes)`` gives the policy's router for so many nodes, where it has one. There is a fresh one whenever
    a node comes or is lost.
    """

    def __init__(self, make_router: Callable[[int], Router | None]) -> None:
        self._make_router = make_router
        self._router: Router | None = None
        self._nodes: dict[str, KnownNode] = {}
        self.away_since_s: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[KnownNode]:
        return iter(self._nodes.values())

    def __contains__(self, node_id: object) -> bool:
        return node_id in self._nodes

    def __getitem__(self, node_id: str) -> KnownNode:
        return self._nodes[node_id]

    def add(self, node_id: str, frontend_id: str) -> None:
        """A node comes, or comes back."""
        self._nodes[node_id] = KnownNode(node_id, frontend_id)
        self._router = self._make_router(len(self._nodes))
        self.away_since_s.pop(node_id, None)

    def remove(self, node_id: str, now_s: float) -> None:
        """A node is lost."""
        del self._nodes[node_id]
        self.away_since_s[node_id] = now_s
        self._router = self._make_router(len(self._nodes)) if self._nodes else None

    def choose(self, model: str, sent: Mapping[tuple[str, str], int], now_s: float) -> KnownNode | None:
        """The node for a request of a model, where there is one. ``sent``: the requests that we have sent, by node and
        model: these are known at once, reports are a fraction of a second old."""
        if not self._nodes:
            return None
        nodes = tuple(self._nodes.values())
        loads = [node.load | _sent_to(node.node_id, sent) for node in nodes]
        place = route(
            self._router,
            model,
            [load.total() for load in loads],
            [load[model] for load in loads],
            lambda place: nodes[place].is_warm(model),
            now_s,
        )
        return nodes[place]


def _sent_to(node_id: str, sent: Mapping[tuple[str, str], int]) -> Counter[str]:
    return Counter({model: count for (node, model), count in sent.items() if node == node_id})
