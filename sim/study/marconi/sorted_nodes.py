"""Nodes in the order of a number that each has."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

from sim.study.marconi.radix_tree import StateNode

_Entry = tuple[float, int, StateNode]


class SortedNodes:
    """Of two with one number the older comes first."""

    def __init__(self) -> None:
        self._entries: list[_Entry] = []
        self._of: dict[StateNode, _Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, node: StateNode) -> bool:
        return node in self._of

    def __iter__(self) -> Iterator[tuple[float, StateNode]]:
        return ((number, node) for number, _, node in self._entries)

    def put(self, node: StateNode, number: float) -> None:
        """The node has this number from now on."""
        entry = self._of.get(node)
        if entry is not None:
            if entry[0] == number:
                return
            self.drop(node)
        entry = self._of[node] = (number, node.serial, node)
        insort(self._entries, entry)

    def drop(self, node: StateNode) -> None:
        """Forget it, if it is here."""
        entry = self._of.pop(node, None)
        if entry is not None:
            del self._entries[bisect_left(self._entries, entry)]

    def number(self, node: StateNode) -> float:
        """Which it has."""
        return self._of[node][0]

    @property
    def first(self) -> StateNode:
        return self._entries[0][2]

    @property
    def least(self) -> float:
        return self._entries[0][0]

    @property
    def most(self) -> float:
        return self._entries[-1][0]
