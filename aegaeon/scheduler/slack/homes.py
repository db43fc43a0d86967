"""Which node serves a model: each has a home, whose host memory holds its weights.

Homes are spread evenly at first. Where one node has clearly more requests under way than another, the model of the
next request moves there, if it has not moved lately and its weights are in that node's host memory or fit beside what
is at home there. What is under way stays where it is.

Does not know: devices, turns, how requests and weights get to a node.
"""

from __future__ import annotations

from collections.abc import Sequence

from aegaeon.core.model import ModelSpec


class Homes:
    """``host_bytes``: what a node's host memory holds of weights.

    A model moves where its home has ``imbalance`` times the requests of another node and ``least_excess`` more, at most
    once in ``stay_s`` seconds.
    """

    def __init__(
        self,
        models: Sequence[ModelSpec],
        nodes: int,
        host_bytes: int,
        imbalance: float = 1.5,
        least_excess: int = 32,
        stay_s: float = 60.0,
    ) -> None:
        if nodes < 1:
            raise ValueError(f"a pool has at least one node, not {nodes}")
        self._sizes = {model.name: model.weight_bytes for model in models}
        self._host_bytes = host_bytes
        self._imbalance = imbalance
        self._least_excess = least_excess
        self._stay_s = stay_s
        self._used_bytes = [0] * nodes
        self._moved_s: dict[str, float] = {}
        self._homes: dict[str, int] = {}
        self._node_count = nodes
        for model in models:
            self._settle(model.name, min(range(nodes), key=lambda node: self._used_bytes[node]))

    def home(self, model: str) -> int:
        """The node that serves a model now."""
        return self._homes[model]

    def at_home(self, node: int) -> tuple[str, ...]:
        """The models of a node, in the order in which they settled there."""
        return tuple(model for model, home in self._homes.items() if home == node)

    def route(self, model: str, under_way: Sequence[int], now_s: float) -> int:
        """The node for a new request. ``under_way``: requests of every node; an unknown model goes to the idlest."""
        idlest = min(range(self._node_count), key=lambda node: under_way[node])
        home = self._homes.get(model)
        if home is None:
            return idlest
        if self._should_move(model, under_way[home], under_way[idlest], now_s) and self._has_room(model, idlest):
            self._used_bytes[home] -= self._sizes[model]
            del self._homes[model]
            self._settle(model, idlest)
            self._moved_s[model] = now_s
        return self._homes[model]

    def _settle(self, model: str, node: int) -> None:
        self._homes[model] = node
        self._used_bytes[node] += self._sizes[model]

    def _should_move(self, model: str, here: int, there: int, now_s: float) -> bool:
        uneven = here >= there + self._least_excess and here >= self._imbalance * there
        return uneven and now_s >= self._moved_s.get(model, -self._stay_s) + self._stay_s

    def _has_room(self, model: str, node: int) -> bool:
        return self._used_bytes[node] + self._sizes[model] <= self._host_bytes
