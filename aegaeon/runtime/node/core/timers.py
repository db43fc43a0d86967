"""What a loop is to do later. Pure: the loop says what time it is."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count


class Timers:
    """Acts in the order of their times; those of one time in the order in which they were set."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()

    def at(self, due_s: float, act: Callable[[], None]) -> None:
        """Have ``act`` called by the first ``run`` at ``due_s`` or later."""
        heapq.heappush(self._heap, (due_s, next(self._numbers), act))

    @property
    def next_s(self) -> float | None:
        """When the next one is due; None without any."""
        return self._heap[0][0] if self._heap else None

    def run(self, now_s: float) -> None:
        """Call what is due by now, but not what these calls set for now: a loop must get to its other work."""
        due = []
        while self._heap and self._heap[0][0] <= now_s:
            due.append(heapq.heappop(self._heap)[2])
        for act in due:
            act()
