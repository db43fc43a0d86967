"""The wait that one who is refused is told."""

from __future__ import annotations

import pytest

from aegaeon.scheduler.drain import Drain


def busy_drain(gap_s: float, departures: int) -> Drain:
    drain = Drain()
    drain.begin(0.0)
    for number in range(1, departures + 1):
        drain.leave(number * gap_s)
    return drain


def test_the_wait_is_the_queue_at_the_observed_pace() -> None:
    assert busy_drain(2.0, 10).wait_s(5, 20.0) == pytest.approx(10.0)


def test_time_without_a_queue_does_not_count() -> None:
    drain = busy_drain(2.0, 10)
    drain.begin(1000.0)
    drain.leave(1002.0)
    assert drain.wait_s(5, 1002.0) == pytest.approx(10.0)


def test_a_new_pace_takes_over() -> None:
    drain = busy_drain(2.0, 10)
    for number in range(1, 201):
        drain.leave(20.0 + number * 0.5)
    assert drain.wait_s(10, 120.0) == pytest.approx(5.0, rel=0.01)


def test_a_queue_that_stands_still_is_owned_up_to() -> None:
    drain = busy_drain(2.0, 10)
    assert drain.wait_s(5, 20.0 + 600.0) > 10 * drain.wait_s(5, 20.0)
    never = Drain()
    never.begin(0.0)
    assert never.wait_s(1, 30.0) == pytest.approx(30.0)


def test_one_request_that_was_served_at_once_does_not_promise_that_to_a_crowd() -> None:
    drain = busy_drain(0.01, 1)
    drain.begin(100.0)
    drain.leave(102.0)
    assert drain.wait_s(8, 102.0) == pytest.approx(8.0, rel=0.01)
