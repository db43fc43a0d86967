"""The ``Router`` protocol: how a policy sends requests to the nodes of a pool, in both worlds (runtime, simulator).

A policy without a router of its own leaves it to ``choose_node``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from aegaeon.core.model import ModelSpec


class Router(Protocol):
    """Sends requests to nodes, which are counted from 0 in order."""

    def at_home(self, node: int) -> Sequence[str]:
        """The models that a node's host memory holds from the start, as far as they fit."""
        ...

    def route(self, model: str, under_way: Sequence[int], now_s: float) -> int:
        """The node for a new request. ``under_way``: requests of every node."""
        ...


MakeRouter = Callable[[Sequence[ModelSpec], int, int], Router]
"""(models, nodes, host memory for weights of a node in bytes) -> router."""
