"""Models with work, the most urgent first."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Iterable, Iterator

from aegaeon.core.instance import Role
from aegaeon.scheduler.policies.slack.slack_model import SlackModel

_ROLES = {  # that find work, where there are prompts, where there is somebody to decode
    (True, True): (Role.PREFILL, Role.DECODE, Role.MIXED),
    (True, False): (Role.PREFILL, Role.MIXED),
    (False, True): (Role.DECODE, Role.MIXED),
}
_STALE_S = 0.25
_CHECKS = 3  # of keys, each time the agenda is refreshed


class Agenda:
    """Sorted by ``key_of(model, now_s)``. Updates are O(log n) comparisons.

    An instance that only decodes sees the models with somebody to decode, one that only prefills those with a prompt.
    A key also changes by itself, when somebody becomes late: the oldest keys are computed again by ``refresh``, a few
    at a time, each at most every quarter of a second.
    """

    def __init__(self, key_of: Callable[[SlackModel, float], float]) -> None:
        self._key_of = key_of
        self._entries: dict[Role, list[tuple[float, int]]] = {role: [] for role in Role}
        self._models: dict[int, SlackModel] = {}
        self._checks: deque[tuple[float, int]] = deque()  # keys by age; those that have changed since are passed over

    def __len__(self) -> int:
        return len(self._models)

    def has_work(self, role: Role) -> bool:
        """Whether any model has work for an instance of this role."""
        return bool(self._entries[role])

    def update(self, model: SlackModel, now_s: float) -> None:
        """The model's members have changed."""
        self._discard(model)
        if model.has_work():
            model.note_late(now_s)
            model.key_s, model.keyed_s = self._key_of(model, now_s), now_s
            model.roles = _ROLES[bool(model.waiting), bool(model.decoding)]
            for role in model.roles:
                insort(self._entries[role], (model.key_s, model.order))
            self._models[model.order] = model
            self._checks.append((now_s, model.order))

    def _discard(self, model: SlackModel) -> None:
        if model.key_s is None:
            return
        for role in model.roles:
            entries = self._entries[role]
            del entries[bisect_left(entries, (model.key_s, model.order))]
        model.key_s = None
        del self._models[model.order]

    def by_urgency(self, role: Role) -> Iterator[SlackModel]:
        """Models with work for an instance of this role, the most urgent first; nothing may be updated meanwhile."""
        return (self._models[order] for _, order in self._entries[role])

    def among(self, models: Iterable[SlackModel], role: Role) -> list[SlackModel]:
        """The models among some with work for an instance of this role, the most urgent first."""
        found = [(model.key_s, model.order, model) for model in models if model.key_s is not None]
        return [model for _, _, model in sorted(found) if role in model.roles]

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
