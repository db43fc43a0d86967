"""When a dead instance is started again, and what a loop is to do later."""

from __future__ import annotations

from aegaeon.runtime.restarts import Restarts
from aegaeon.runtime.timers import Timers


def test_one_that_ran_well_is_replaced_at_once_however_often():
    restarts = Restarts()
    assert [restarts.pause_s("i", ran_well=True) for _ in range(20)] == [0] * 20


def test_one_that_dies_at_its_start_waits_longer_every_time():
    restarts = Restarts()
    assert [restarts.pause_s("i", ran_well=False) for _ in range(10)] == [0, 1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert restarts.pause_s("other", ran_well=False) == 0
    assert restarts.pause_s("i", ran_well=True) == 0
    assert restarts.pause_s("i", ran_well=False) == 1


def test_timers_run_in_order_and_what_they_set_waits_for_the_next_time():
    timers, ran = Timers(), []
    timers.at(2.0, lambda: ran.append("late"))
    timers.at(1.0, lambda: (ran.append("early"), timers.at(0.0, lambda: ran.append("again"))))
    assert timers.next_s == 1.0
    timers.run(0.5)
    assert ran == []
    timers.run(2.0)
    assert ran == ["early", "late"]
    timers.run(2.0)
    assert ran == ["early", "late", "again"]
    assert timers.next_s is None
