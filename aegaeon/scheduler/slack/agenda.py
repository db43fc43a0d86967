"""Models with work, the most urgent first.

Does not know: instances, who takes a model.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Iterator

from aegaeon.core.instance import Role
from aegaeon.scheduler.slack.model_state import ModelState

_STALE_S = 0.25
_CHECKS = 3  # of keys, each time the agenda is refreshed


class Agenda:
    """Sorted by ``key_of(model, now_s)``. Updates are O(log n) comparisons.

    A key also changes by itself, when somebody becomes late: the oldest keys are computed again by ``refresh``, a few
    at a time, each at most every quarter of a second.
    """

    def __init__(self, key_of: Callable[[ModelState, float], float]) -> None:
        self._key_of = key_of
        self._entries: list[tuple[float, int]] = []
        self._models: dict[int, ModelState] = {}
        self._prompts: set[int] = set()  # only their number is asked for
        self._decodes: set[int] = set()
        self._checks: deque[tuple[float, int]] = deque()  # keys by age; those that have changed since are passed over

    def __len__(self) -> int:
        return len(self._entries)

    def has_work(self, role: Role) -> bool:
        """Whether any model has work for an instance of this role."""
        return bool((self._prompts and role.prefills) or (self._decodes and role.decodes))

    def update(self, model: ModelState, now_s: float) -> None:
        """The model's members have changed."""
        if model.key_s is not None:
            del self._entries[bisect_left(self._entries, (model.key_s, model.order))]
            model.key_s = None
            del self._models[model.order]
        self._count(self._prompts, model, bool(model.waiting))
        self._count(self._decodes, model, bool(model.decoding))
        if model.has_work():
            model.note_late(now_s)
            model.key_s, model.keyed_s = self._key_of(model, now_s), now_s
            insort(self._entries, (model.key_s, model.order))
            self._models[model.order] = model
            self._checks.append((now_s, model.order))

    def _count(self, orders: set[int], model: ModelState, waits: bool) -> None:
        if waits:
            orders.add(model.order)
        else:
            orders.discard(model.order)

    def by_urgency(self) -> Iterator[ModelState]:
        """The most urgent first. Nothing may be updated while this is read."""
        return (self._models[order] for _, order in self._entries)

    def refresh(self, now_s: float) -> None:
        """Compute the oldest keys again."""
        checks = self._checks
        for _ in range(_CHECKS):
            if not checks or checks[0][0] >= now_s - _STALE_S:
                return
            keyed_s, order = checks.popleft()
            model = self._models.get(order)
            if model is None or model.key_s is None or model.keyed_s != keyed_s:
                continue
            self.update(model, now_s)
