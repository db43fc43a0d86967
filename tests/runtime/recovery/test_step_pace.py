"""What a step is expected to take."""

from __future__ import annotations

from aegaeon.runtime.recovery.step_pace import StepPace


def test_the_slowest_step_so_far_counts_and_more_tokens_take_longer() -> None:
    pace = StepPace()
    for took_s in (9.0, 0.2, 0.1):
        pace.note("m", 10, took_s)
    assert pace.expected_s("m", 5) == 0.2
    assert pace.expected_s("m", 30) == 0.2 * 3


def test_the_first_step_of_a_model_which_compiles_says_nothing_of_the_next() -> None:
    pace = StepPace()
    assert pace.expected_s("m", 1) is None
    pace.note("m", 10, 90.0)
    assert pace.expected_s("m", 1) is None
    pace.note("m", 10, 0.1)
    assert pace.expected_s("m", 10) == 0.1
    assert pace.expected_s("other", 10) is None
