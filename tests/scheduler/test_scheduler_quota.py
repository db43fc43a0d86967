"""The quota formula against cases worked by hand, and against itself as it is written in the paper."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegaeon.scheduler.policies.paper.quota import turn_quotas_s


@pytest.mark.parametrize(
    ("steps", "switch_s", "expected_s"),
    [
        # Two batches that make 5 steps in a deadline: S = 1/5 + 1/5 = 0.4; 1/(5*4) + 0.4 = 0.45 is less than 0.5, so
        # alpha = 0.5 and q = 1 / (5 * 0.1) = 2. A round is 1 + 2 + 2 = 5 s; 2 s make 100 tokens, worth 10 s: alpha.
        ([5.0, 5.0], 1.0, [2.0, 2.0]),
        # Three of them: S = 0.6, alpha = 1.5/20 + 0.6 = 0.675, q = 1.5 / (5 * 0.075) = 4, which is QMAX.
        ([5.0, 5.0, 5.0], 1.5, [4.0, 4.0, 4.0]),
        # A slow and a fast one: S = 1/2 + 1/4 = 0.75, alpha = 1/(2*4) + 0.75 = 0.875; the slow one gets QMAX
        # (1 / (2 * 0.125) = 4), the fast one half of it, so that both make tokens for 8 s.
        ([2.0, 4.0], 1.0, [4.0, 2.0]),
        # A round that cannot hold its deadlines: S = 1 + 1 = 2, alpha = 0.5/(1*4) + 2 = 2.125, q = 0.5 / 0.125 = 4.
        ([1.0, 1.0], 0.5, [4.0, 4.0]),
        # Free switches and time to spare: switch after every step.
        ([5.0, 5.0], 0.0, [0.0, 0.0]),
        # Free switches and no time to spare: the limit of the formula as c goes to 0, min n * QMAX / n_i.
        ([2.0, 4.0], 0.0, [4.0, 2.0]),
        # Exactly half of the time: 0.5 - S = 0, so alpha is c/(min n * QMAX) + 0.5.
        ([4.0, 4.0], 1.0, [4.0, 4.0]),
        ([], 0.0, []),
    ],
)
def test_worked_by_hand(steps: list[float], switch_s: float, expected_s: list[float]) -> None:
    assert turn_quotas_s(steps, switch_s, max_quota_s=4.0) == pytest.approx(expected_s)


def test_a_switch_that_costs_next_to_nothing_does_not_cancel_out() -> None:
    assert turn_quotas_s([2.0, 4.0], 1e-30, 4.0) == pytest.approx([4.0, 2.0])


STEPS = st.lists(st.floats(0.05, 100.0), min_size=1, max_size=8)


@given(STEPS, st.floats(1e-2, 10.0), st.floats(0.5, 8.0))
def test_equals_the_formula_as_published(steps: list[float], switch_s: float, max_quota_s: float) -> None:
    share = sum(1 / n for n in steps)
    alpha = max(switch_s / (min(steps) * max_quota_s) + share, 0.5)
    published_s = [switch_s / (n * (alpha - share)) for n in steps]
    assert turn_quotas_s(steps, switch_s, max_quota_s) == pytest.approx(published_s, rel=1e-6)


@given(STEPS, st.floats(0.0, 10.0), st.floats(0.5, 8.0))
def test_all_batches_make_tokens_for_the_same_time_within_the_largest_quota(
    steps: list[float], switch_s: float, max_quota_s: float
) -> None:
    quotas_s = turn_quotas_s(steps, switch_s, max_quota_s)
    assert max(quotas_s) <= max_quota_s * (1 + 1e-9)
    worth_s = [quota_s * n for quota_s, n in zip(quotas_s, steps, strict=True)]
    assert worth_s == pytest.approx([worth_s[0]] * len(steps))
