"""Members that wait for a turn, by the time at which their next token is due."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from itertools import chain

from aegaeon.scheduler.policies.slack.slack_job import SlackJob

_Key = tuple[float, tuple[float, int]]


class DueQueue:
    """Sorted by due time, then by arrival. Adding and removing are O(log n) comparisons; nobody may be in it twice."""

    def __init__(self) -> None:
        self._keys: list[_Key] = []
        self._members: dict[_Key, SlackJob] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def __bool__(self) -> bool:
        return bool(self._keys)

    def __iter__(self) -> Iterator[SlackJob]:
        members = self._members
        return (members[key] for key in self._keys)

    def add(self, member: SlackJob) -> None:
        """Queue a member; its due time must not change while it is here."""
        key = (member.due_s, member.order)
        insort(self._keys, key)
        self._members[key] = member

    def discard(self, member: SlackJob) -> None:
        """Take a member out if it is here."""
        key = (member.due_s, member.order)
        if self._members.pop(key, None) is not None:
            del self._keys[bisect_left(self._keys, key)]

    @property
    def first(self) -> SlackJob:
        """The member that was, or is, due first; there must be one."""
        return self._members[self._keys[0]]

    def late(self, now_s: float) -> int:
        """How many were due before now."""
        return bisect_left(self._keys, (now_s,))

    def due_from(self, since_s: float, most: int) -> list[SlackJob]:
        """Up to ``most`` members that are due at or after a time, by due time."""
        first = bisect_left(self._keys, (since_s,))
        members = self._members
        return [members[key] for key in self._keys[first : first + most]]

    def urgent_first(self, after_s: float) -> Iterator[SlackJob]:
        """The members due at or after a time, by due time; then those that are late, the least late first.

        Nobody may be added or discarded meanwhile.
        """
        first = bisect_left(self._keys, (after_s,))
        for index in chain(range(first, len(self._keys)), range(first - 1, -1, -1)):
            yield self._members[self._keys[index]]
