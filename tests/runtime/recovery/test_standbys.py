"""Processes that stand by: who gets one, and when a new one is started."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

from aegaeon.runtime.recovery.standbys import Standbys


def numbered(kept: int, pauses_s: list[float] | None = None) -> tuple[Standbys[int], list[int]]:
    """Standbys that are numbers, and the list of those that were started; pauses are noted and not made."""
    numbers, started = count(), []

    def later(pause_s: float, act: Callable[[], None]) -> None:
        (pauses_s if pauses_s is not None else []).append(pause_s)
        act()

    def start() -> int:
        started.append(next(numbers))
        return started[-1]

    return Standbys(kept, start, later), started


def test_one_that_is_taken_is_replaced_when_it_may_be():
    standbys, started = numbered(1)
    assert standbys.take() is None
    standbys.fill()
    assert standbys.take() == 0
    assert (standbys.take(), started) == (None, [0])
    standbys.fill()
    assert started == [0, 1]


def test_one_that_dies_is_replaced_and_is_given_to_nobody():
    standbys, started = numbered(2)
    standbys.fill()
    standbys.lost(0)
    assert started == [0, 1, 2]
    assert (standbys.take(), standbys.take()) == (1, 2)
    standbys.lost(1)  # the end of one that was taken is no business of theirs
    assert started == [0, 1, 2]


def test_standbys_that_die_one_after_the_other_are_replaced_ever_more_slowly():
    pauses_s: list[float] = []
    standbys, _ = numbered(1, pauses_s)
    standbys.fill()
    for number in range(6):
        standbys.lost(number)
    assert pauses_s == sorted(pauses_s)
    assert pauses_s[0] < pauses_s[-1]
    standbys.take()  # one that was of use shows that they can be
    standbys.fill()
    standbys.lost(7)
    assert pauses_s[-1] == 0.0


def test_standbys_that_cannot_be_started_are_tried_again():
    started, laters, refusals = [], [], [RuntimeError("can't start new thread")] * 2

    def start() -> int:
        if refusals:
            raise refusals.pop()
        started.append(len(started))
        return started[-1]

    standbys = Standbys(2, start, lambda pause_s, act: laters.append((pause_s, act)))
    standbys.fill()
    laters[0][1]()
    assert started == []
    laters[1][1]()
    assert started == [0, 1]
    assert [pause_s for pause_s, _ in laters] == [0.0, 1.0]


def test_after_the_end_nothing_is_started():
    standbys, started = numbered(1)
    standbys.fill()
    assert standbys.close() == [0]
    standbys.fill()
    assert started == [0]
