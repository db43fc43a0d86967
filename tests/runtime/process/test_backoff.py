"""When a dead instance is started again, and what a loop is to do later."""

from __future__ import annotations

from aegaeon.runtime.node.core.timers import Timers
from aegaeon.runtime.process.backoff import INSTANCE_PAUSES, Backoff, Pauses, ran_well


def test_one_that_ran_well_is_replaced_at_once_however_often():
    backoff = Backoff(INSTANCE_PAUSES)
    assert [backoff.pause_s(ran_well=True) for _ in range(20)] == [0] * 20
    assert not backoff.hopeless


def test_an_instance_that_dies_at_its_start_waits_longer_every_time():
    backoff = Backoff(INSTANCE_PAUSES)
    assert [backoff.pause_s(ran_well=False) for _ in range(10)] == [0, 1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert backoff.pause_s(ran_well=True) == 0
    assert backoff.pause_s(ran_well=False) == 1


def test_what_ends_too_often_in_a_row_is_given_up():
    backoff = Backoff(Pauses(1.0, 5.0), limit=3)
    for ended_well, hopeless in ((False, False), (False, False), (True, False), (False, False), (False, True)):
        backoff.pause_s(ended_well)
        assert backoff.hopeless is hopeless


def test_only_the_time_that_it_was_up_makes_a_good_life():
    assert not ran_well(None, 1e9)
    assert not ran_well(100.0, 159.0)
    assert ran_well(100.0, 160.0)


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
