"""How well slabs are used over time, sampled at a fixed step of virtual time (Figure 16).

Between two events nothing changes, so all samples of a gap are one that counts as often: idle time costs nothing.
"""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sim.world.world import World

_STEP_S = 1.0


class FragmentationSampler:
    """Means over samples of the bytes of slabs that serve a shape, and of the blocks live in them, over all nodes."""

    def __init__(self, world: World, step_s: float = _STEP_S) -> None:
        self._nodes = world.nodes
        self._step_s = step_s
        self._next_s = 0.0
        self._samples = 0
        self._sums: dict[str, list[float]] = {}
        self._labels = {id(shape): shape.label for node in world.nodes for shape in node.slabs.shapes}

    def look(self, now_s: float) -> float:
        """Time has come to ``now_s``; nothing has changed since the last event. Returns when the next sample is due."""
        due = ceil((now_s - self._next_s) / self._step_s)
        if due > 0:
            self._next_s += due * self._step_s
            self._samples += due
            self._take(due)
        return self._next_s

    def usage(self) -> dict[str, dict[str, float]]:
        """The use of slabs by shape label: mean assigned and used bytes. Shapes with the same label are one."""
        samples = max(1, self._samples)
        return {
            label: {"assigned_bytes": assigned / samples, "used_bytes": used / samples}
            for label, (assigned, used) in sorted(self._sums.items())
        }

    def _take(self, times: int) -> None:
        for node in self._nodes:
            for shape in node.slabs.shapes:
                usage = node.slabs.usage(shape)
                sums = self._sums.setdefault(self._labels[id(shape)], [0.0, 0.0])
                sums[0] += times * usage.assigned_bytes
                sums[1] += times * usage.used_bytes
