"""The world's agenda: what happens next, in (time, declared priority, sequence) order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import IntEnum
from heapq import heappop, heappush
from typing import Any

Action = Callable[[Any, float], None]
"""Called with the entry's argument and the time."""


class Priority(IntEnum):
    """Who goes first at the same time: what a copy brought is known before a step ends, and both before an arrival."""

    LANDED = 0
    BOUNDARY = 1
    ARRIVAL = 2


Schedule = Callable[[float, Priority, Action, Any], None]
"""Called with (time, priority, action, argument): have the action called then."""


class EventQueue:
    """A heap of actions; equal times and priorities go in the order in which they were pushed."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, int, Action, Any]] = []
        self._pushed = 0

    def push(self, time_s: float, priority: Priority, action: Action, argument: Any) -> None:
        """Have ``action(argument, time_s)`` called at ``time_s``."""
        self._pushed += 1
        heappush(self._heap, (time_s, priority, self._pushed, action, argument))

    def drain(self) -> Iterator[tuple[float, Action, Any]]:
        """Every entry as (time, action, argument), those that are pushed meanwhile included."""
        while self._heap:
            time_s, _, _, action, argument = heappop(self._heap)
            yield time_s, action, argument
