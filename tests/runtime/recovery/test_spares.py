"""Spare processes: who gets one, and when a new one is started."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import pytest

from aegaeon.runtime.recovery.spares import Spares


def numbered(kept: int, pauses_s: list[float] | None = None) -> tuple[Spares[int], list[int]]:
    """Spares that are numbers, and the list of those that were started; pauses are noted and not made."""
    numbers, started = count(), []

    def later(pause_s: float, act: Callable[[], None]) -> None:
        (pauses_s if pauses_s is not None else []).append(pause_s)
        act()

    def start() -> int:
        started.append(next(numbers))
        return started[-1]

    return Spares(kept, start, later), started


def test_instances_come_up_before_spares_are_started():
    spares, started = numbered(1)
    assert (spares.take(), spares.take()) == (0, 1)
    spares.up()
    assert started == [0, 1]
    spares.up()
    assert started == [0, 1, 2]


def test_who_dies_gets_the_spare_and_the_next_one_a_new_process_beside_it():
    spares, started = numbered(1)
    spares.fill()
    assert (spares.take(), spares.take()) == (0, 1)
    assert started == [0, 1]  # the spare's successor waits until both are up
    spares.up()
    spares.up()
    assert started == [0, 1, 2]
    assert spares.take() == 2


def test_a_spare_that_dies_is_replaced_and_is_given_to_nobody():
    spares, started = numbered(2)
    spares.fill()
    spares.lost(0)
    assert started == [0, 1, 2]
    assert (spares.take(), spares.take()) == (1, 2)
    spares.lost(1)  # the end of an instance is no business of the spares
    assert started == [0, 1, 2]


def test_spares_that_die_one_after_the_other_are_replaced_ever_more_slowly():
    pauses_s: list[float] = []
    spares, _ = numbered(1, pauses_s)
    spares.fill()
    for number in range(5):
        spares.lost(number)
    assert pauses_s == [0.0, 1.0, 2.0, 4.0, 8.0]
    spares.take()
    spares.up()  # one that came up shows that they can
    spares.lost(6)
    assert pauses_s[-1] == 0.0


class Refusing:
    """Starts numbered processes, but for a few times in between."""

    def __init__(self) -> None:
        self.started = 0
        self.refusals = 0

    def __call__(self) -> int:
        if self.refusals:
            self.refusals -= 1
            raise RuntimeError("can't start new thread")
        self.started += 1
        return self.started


def test_a_process_that_cannot_be_started_for_an_instance_holds_up_no_spares():
    start = Refusing()
    spares = Spares(1, start)
    start.refusals = 1
    with pytest.raises(RuntimeError, match="thread"):
        spares.take()
    spares.fill()
    assert start.started == 1


def test_spares_that_cannot_be_started_are_tried_again_and_keep_nobody_from_being_up():
    start, laters = Refusing(), []
    spares = Spares(2, start, lambda pause_s, act: laters.append((pause_s, act)))
    spares.take()
    start.refusals = 2
    spares.up()
    laters[0][1]()
    laters[1][1]()
    assert start.started == 3
    assert [pause_s for pause_s, _ in laters] == [0.0, 1.0]


def test_without_spares_every_process_is_new():
    spares, started = numbered(0)
    spares.fill()
    assert started == []
    assert spares.take() == 0
    spares.up()
    assert started == [0]


def test_after_the_end_nothing_is_started():
    spares, started = numbered(1)
    spares.fill()
    assert spares.close() == [0]
    spares.fill()
    assert started == [0]


def test_fewer_may_be_wanted_later():
    spares, started = numbered(1)
    spares.fill()
    spares.keep(0)
    assert spares.take() == 0
    spares.up()
    assert (spares.complete, started) == (True, [0])


def test_a_spare_that_is_taken_as_it_waits_is_replaced_when_it_may_be():
    spares, started = numbered(1)
    assert spares.take_waiting() is None
    spares.fill()
    assert spares.complete
    assert spares.take_waiting() == 0
    assert (spares.take_waiting(), spares.complete, started) == (None, False, [0])
    spares.fill()
    assert (spares.complete, started) == (True, [0, 1])
