"""Whether a silent process is stuck, by a driver's looks at its pulse."""

from __future__ import annotations

from dataclasses import replace

from aegaeon.runtime.recovery.vigil import Vigil, look_interval_s
from aegaeon.runtime.wire.pulse_reading import PulseReading

TIMEOUT_S = 10.0
LOOK_S = look_interval_s(TIMEOUT_S)
BORN = PulseReading(pid=7, beats=1, passes=1, waiting=True, expected_s=None)


class Watched:
    """A process whose pulse the test plays."""

    def __init__(self, reading: PulseReading = BORN) -> None:
        self.now_s = 100.0
        self.reading = reading
        self.vigil = Vigil(TIMEOUT_S, self.now_s)
        self.vigil.look(reading, self.now_s)

    def lives(self, for_s: float, *, beats: bool = True, passes: bool = True, look_s: float = LOOK_S) -> Watched:
        """Looks at regular intervals, between which it beats, and its loop goes round, or not."""
        for _ in range(round(for_s / look_s)):
            self.now_s += look_s
            self.reading = replace(self.reading, beats=self.reading.beats + beats, passes=self.reading.passes + passes)
            self.vigil.look(self.reading, self.now_s)
        return self

    def works(self, expected_s: float | None) -> Watched:
        self.reading = replace(self.reading, waiting=False, expected_s=expected_s)
        return self


def test_a_process_that_stopped_is_stuck_after_the_timeout_and_told_of_before():
    watched = Watched().lives(60)
    assert not watched.vigil.trouble
    watched.lives(6, beats=False, passes=False)
    assert (watched.vigil.trouble, watched.vigil.stuck) == ("gives no sign of life", False)
    assert watched.lives(4.5, beats=False, passes=False).vigil.stuck


def test_a_loop_that_waits_for_messages_may_do_so_for_ever():
    assert not Watched().lives(86400, passes=False, look_s=1.0).vigil.trouble


def test_a_step_of_known_length_is_stuck_after_many_times_that():
    watched = Watched().works(2.0).lives(35, passes=False)
    assert (watched.vigil.trouble, watched.vigil.stuck) == ("is stuck in one piece of work", False)
    assert watched.lives(6, passes=False).vigil.stuck


def test_short_steps_have_the_timeout_at_least():
    watched = Watched().works(0.001)
    assert not watched.lives(9, passes=False).vigil.stuck
    assert watched.lives(2, passes=False).vigil.stuck


def test_work_of_which_nothing_is_known_has_ten_minutes():
    watched = Watched().works(None)
    assert not watched.lives(590, passes=False).vigil.stuck
    assert watched.lives(20, passes=False).vigil.stuck


def test_a_process_that_is_being_started_may_take_ten_minutes():
    watched = Watched(PulseReading(0, 0, 0, waiting=False, expected_s=None))
    assert not watched.lives(590, beats=False, passes=False).vigil.stuck
    assert watched.lives(20, beats=False, passes=False).vigil.stuck


def test_nobody_is_blamed_for_a_machine_that_stood_still():
    """A suspended machine, or one so busy that the driver did not run either."""
    watched = Watched()
    for _ in range(9):
        watched.lives(3600, beats=False, passes=False, look_s=3600)
    assert not watched.vigil.stuck
    assert not watched.lives(LOOK_S).vigil.trouble


def test_a_sign_of_life_ends_the_trouble():
    watched = Watched().lives(8, beats=False, passes=False)
    assert watched.vigil.trouble
    assert not watched.lives(LOOK_S).vigil.trouble
    assert not watched.lives(4, beats=False, passes=False).vigil.trouble
