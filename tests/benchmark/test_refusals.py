"""What refused requests were told, beside what it came to."""

from __future__ import annotations

import pytest

from aegaeon.core.command import Command, RejectReason, RejectRequest
from aegaeon.core.event import Event, RequestArrived, RequestPrefilled
from aegaeon.core.request import Request
from benchmark.policies.refusals import RefusalWatch, median_waits_s


class AtMost:
    """Lets so many wait, and tells the others to come again in ``told_s``."""

    def __init__(self, queued: int, told_s: float) -> None:
        self._left = queued
        self._told_s = told_s

    def handle(self, event: Event, now_s: float) -> list[Command]:
        if isinstance(event, RequestArrived):
            self._left -= 1
            if self._left < 0:
                return [RejectRequest(event.request.request_id, RejectReason.OVERLOADED, "", self._told_s)]
        return []


def arrive(watch: RefusalWatch, name: str, now_s: float) -> list[Command]:
    return watch.handle(RequestArrived(Request(name, "m", now_s, 10, 10)), now_s)


def test_the_wait_was_as_long_as_those_who_waited_took() -> None:
    watch = RefusalWatch(AtMost(2, told_s=5.0))
    for name in ("a", "b"):
        assert arrive(watch, name, 1.0) == []
    (refusal,) = arrive(watch, "c", 1.5)
    assert isinstance(refusal, RejectRequest)
    watch.handle(RequestPrefilled("i0", 1, "b", 11), 2.0)
    assert watch.waits_s() == [], "it is not over yet"
    watch.handle(RequestPrefilled("i0", 2, "a", 11), 4.0)
    assert watch.waits_s() == [(5.0, pytest.approx(2.5))]
    assert median_waits_s([watch]) == (5.0, pytest.approx(2.5))


def test_where_nobody_is_refused_nobody_is_told_anything() -> None:
    watch = RefusalWatch(AtMost(2, told_s=5.0))
    arrive(watch, "a", 0.0)
    assert median_waits_s([watch]) == (0.0, 0.0)
