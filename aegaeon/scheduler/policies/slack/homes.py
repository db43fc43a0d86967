"""Which nodes serve a model: each has a home, whose host memory holds its weights; one with much traffic has several.

Homes are spread evenly at first. Where one node has clearly more requests under way than another, the model of the
next request moves there, if it has not moved lately and its weights are in that node's host memory or fit beside what
is at home there. A model that has at least half of a node's share of the traffic would only move the excess: it gets a
home there beside the others instead, and its requests go to the idlest of its homes, for batches as large as its are no
worse for being halved. It keeps one home when it has lost its traffic. What is under way stays where it is.
"""

from __future__ import annotations

from collections.abc import Sequence

from aegaeon.core.model import ModelSpec
from aegaeon.scheduler.policies.slack.traffic import Traffic
from aegaeon.scheduler.routing import BUSIER, MORE

_HOT = 0.5  # of a node's share of the traffic: from here on a model may have several homes ...
_COOL = 0.25  # ... and below this it has one


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
        self._homes: dict[str, list[int]] = {model.name: [] for model in models}
        self._traffic = Traffic()
        for name in self._homes:
            self._settle(name, min(range(nodes), key=lambda node: self._used_bytes[node]))

    def homes(self, model: str) -> tuple[int, ...]:
        """The nodes that serve a model now."""
        return tuple(self._homes[model])

    def at_home(self, node: int) -> tuple[str, ...]:
        """The models of a node, and then those of others, which it may come to serve."""
        return tuple(sorted(self._homes, key=lambda model: node not in self._homes[model]))

    def route(self, model: str, under_way: Sequence[int], now_s: float) -> int:
        """The node for a new request. ``under_way``: requests of every node; an unknown model goes to the idlest."""
        idlest = min(range(len(under_way)), key=under_way.__getitem__)
        if model not in self._homes:
            return idlest
        self._traffic.note(model, now_s)
        share = self._traffic.share(model, now_s) * len(under_way)
        if share < _COOL:
            self._keep_one(model, under_way)
        home = min(self._homes[model], key=under_way.__getitem__)
        if self._has_room(model, idlest):
            if share >= _HOT and under_way[home] > BUSIER * under_way[idlest] + MORE:
                self._settle(model, idlest)
            elif share < _HOT and self._should_move(model, under_way[home], under_way[idlest], now_s):
                self._move(model, home, idlest, now_s)
        return min(self._homes[model], key=under_way.__getitem__)

    def _settle(self, model: str, node: int) -> None:
        self._homes[model].append(node)
        self._used_bytes[node] += self._sizes[model]

    def _leave(self, model: str, node: int) -> None:
        self._homes[model].remove(node)
        self._used_bytes[node] -= self._sizes[model]

    def _move(self, model: str, home: int, node: int, now_s: float) -> None:
        self._leave(model, home)
        self._settle(model, node)
        self._moved_s[model] = now_s

    def _keep_one(self, model: str, under_way: Sequence[int]) -> None:
        """The idlest of its homes."""
        for node in sorted(self._homes[model], key=under_way.__getitem__)[1:]:
            self._leave(model, node)

    def _should_move(self, model: str, here: int, there: int, now_s: float) -> bool:
        uneven = here >= there + self._least_excess and here >= self._imbalance * there
        return uneven and now_s >= self._moved_s.get(model, -self._stay_s) + self._stay_s

    def _has_room(self, model: str, node: int) -> bool:
        return self._used_bytes[node] + self._sizes[model] <= self._host_bytes
