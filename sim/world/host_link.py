"""A device's copy engine towards it: KV and weights share one direction of the host link.

KV goes first (somebody waits for it, and it is small), weights for a turn that waits before weights fetched ahead; a
copy that is overtaken goes on afterwards where it was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sim.world.event_queue import Priority, Schedule


@dataclass(slots=True, eq=False)
class WeightCopy:
    """One model on its way to a device. ``seconds`` are left of it when it has the engine for itself.

    ``earliest_s``: its bytes are not in host memory before; ``done`` is called with the time when it has landed.
    """

    model: str
    seconds: float
    earliest_s: float
    done: Callable[[WeightCopy, float], None]
    urgent: bool = False
    start_s: float = 0.0
    finish_s: float = 0.0
    due_s: float = -1.0  # of its entry in the event queue


class HostLink:
    """One direction of one device's link: weights wait here, KV only pushes them back."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._kv_free_s = 0.0
        self._current: WeightCopy | None = None
        self._waiting: list[WeightCopy] = []
        self.busy_s = 0.0

    def move_kv(self, now_s: float, earliest_s: float, seconds: float) -> float:
        """Copy KV as soon as it is there (``earliest_s``) and older KV is through; returns when it has landed."""
        start_s = max(now_s, earliest_s, self._kv_free_s)
        self._kv_free_s = start_s + seconds
        self.busy_s += seconds
        current = self._current
        if current is not None and start_s < current.finish_s:
            current.finish_s += seconds
        return self._kv_free_s

    def submit(self, copy: WeightCopy, now_s: float) -> None:
        """Queue a copy of weights."""
        self.busy_s += copy.seconds
        self._waiting.append(copy)
        self._dispatch(now_s)

    def promote(self, copy: WeightCopy, now_s: float) -> None:
        """Somebody waits for this copy now."""
        copy.urgent = True
        self._dispatch(now_s)

    def cancel(self, copy: WeightCopy, now_s: float) -> None:
        """The weights are not wanted any more."""
        if copy is self._current:
            self._current = None
            self._dispatch(now_s)
        elif copy in self._waiting:
            self._waiting.remove(copy)

    def _dispatch(self, now_s: float) -> None:
        if not self._waiting:
            return
        best = next((copy for copy in self._waiting if copy.urgent), self._waiting[0])
        current = self._current
        if current is not None:
            if current.urgent or not best.urgent:
                return
            current.seconds = min(current.seconds, max(0.0, current.finish_s - max(now_s, self._kv_free_s)))
            self._waiting.insert(0, current)
        self._waiting.remove(best)
        self._current = best
        best.start_s = max(now_s, self._kv_free_s, best.earliest_s)
        best.finish_s = best.start_s + best.seconds
        self._await(best)

    def _await(self, copy: WeightCopy) -> None:
        copy.due_s = copy.finish_s
        self._schedule(copy.finish_s, Priority.LANDED, self._look, copy)

    def _look(self, copy: WeightCopy, now_s: float) -> None:
        if copy is not self._current or copy.due_s != now_s:
            return  # an entry that is out of date
        if copy.finish_s > now_s:
            self._await(copy)
            return
        self._current = None
        self._dispatch(now_s)
        copy.done(copy, now_s)


class OutLink:
    """The other direction: KV leaves in the order in which it was written."""

    def __init__(self) -> None:
        self._free_s = 0.0
        self.busy_s = 0.0

    def move(self, now_s: float, seconds: float) -> float:
        """Copy something out; returns when it has landed."""
        self._free_s = max(now_s, self._free_s) + seconds
        self.busy_s += seconds
        return self._free_s
