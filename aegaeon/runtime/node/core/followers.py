"""Requests with the prompt of another that comes first: they wait until that is processed, and share its KV."""

from __future__ import annotations

from collections import defaultdict

from aegaeon.runtime.node.core.driver_request import DriverRequest


class Followers:
    """Requests by the one that they follow. Their scheduler does not know of them yet."""

    def __init__(self) -> None:
        self._by_leader: defaultdict[str, dict[str, DriverRequest]] = defaultdict(dict)
        self._leaders: dict[str, str] = {}

    def __contains__(self, request_id: object) -> bool:
        """Whether a request follows another."""
        return request_id in self._leaders

    def __len__(self) -> int:
        return len(self._leaders)

    def add(self, request: DriverRequest, leader_id: str) -> None:
        """A request comes, and follows another."""
        self._by_leader[leader_id][request.request_id] = request
        self._leaders[request.request_id] = leader_id

    def remove(self, request_id: str) -> None:
        """It is over before it began; unknown ones are ignored."""
        leader_id = self._leaders.pop(request_id, None)
        if leader_id is not None:
            del self._by_leader[leader_id][request_id]

    def take(self, leader_id: str) -> list[DriverRequest]:
        """The followers of a request, in the order in which they came: they do so no more."""
        followers = list(self._by_leader.pop(leader_id, {}).values())
        for request in followers:
            del self._leaders[request.request_id]
        return followers
