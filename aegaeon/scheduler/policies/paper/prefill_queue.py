"""One instance's queue of prefill groups, first due, first served, and the estimated time to drain it.

Where all requests have the same target for their first token that is first come, first served, as published.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice, takewhile

from aegaeon.scheduler.policies.paper.group import Group

_LOOKAHEAD_GROUPS = 32  # nobody prefetches for what is further away


class PrefillQueue:
    """Groups in the order in which they run; ``len`` counts requests."""

    def __init__(self) -> None:
        self._groups: deque[Group] = deque()
        self._by_model: dict[str, list[Group]] = {}
        self._drain_us = 0
        self._requests = 0

    def __len__(self) -> int:
        return self._requests

    def __iter__(self) -> Iterator[Group]:
        return iter(self._groups)

    @property
    def head(self) -> Group | None:
        """The first group: it runs, or will run next."""
        return self._groups[0] if self._groups else None

    @property
    def tail_model(self) -> str | None:
        """The model of the last group."""
        return self._groups[-1].model if self._groups else None

    @property
    def drain_us(self) -> int:
        """Estimated microseconds until it is empty: switches and prefills."""
        return self._drain_us

    def of_model(self, model: str) -> list[Group]:
        """The model's groups."""
        return list(self._by_model.get(model, ()))

    def next_other_model(self, model: str) -> str | None:
        """The model of the first group, among the next ones, that is not of ``model``."""
        near = islice(self._groups, _LOOKAHEAD_GROUPS)
        return next((group.model for group in near if group.model != model), None)

    def insert(self, group: Group) -> None:
        """Queue a group without members before those that are due later (one of which may be the one that runs)."""
        self._insert(group)
        self._note(group)

    def hasten(self, group: Group, order: tuple[float, int]) -> None:
        """A group has become due earlier."""
        self._groups.remove(group)
        group.order = order
        self._insert(group)

    def _insert(self, group: Group) -> None:
        later = takewhile(lambda other: other.order > group.order, reversed(self._groups))
        self._groups.insert(len(self._groups) - sum(1 for _ in later), group)

    def put(self, group: Group, request_id: str, prefill_us: int) -> None:
        """Let a request join a group."""
        group.members[request_id] = prefill_us
        group.room -= 1
        self._drain_us += prefill_us
        self._requests += 1

    def remove(self, group: Group, request_id: str) -> None:
        """Take a request out of its group, and the group out of the queue if that was its last one."""
        self._drain_us -= group.members.pop(request_id)
        self._requests -= 1
        if not group.members:
            self._forget(group)

    def _note(self, group: Group) -> None:
        self._by_model.setdefault(group.model, []).append(group)
        self._drain_us += group.switch_us

    def _forget(self, group: Group) -> None:
        self._groups.remove(group)
        self._drain_us -= group.switch_us
        same_model = self._by_model[group.model]
        same_model.remove(group)
        if not same_model:
            del self._by_model[group.model]
