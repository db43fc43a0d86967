"""Where curves fall through a level."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegaeon.crossing import CrossingKind, crossing


def test_a_crossing_is_interpolated() -> None:
    found = crossing([(40, 0.8), (32, 1.0), (48, 0.5)])
    assert (found.kind, found.x) == (CrossingKind.CROSSES, pytest.approx(36.0))
    assert (found.text(), found.text(digits=2)) == ("36", "36.00")


def test_the_first_fall_counts() -> None:
    assert crossing([(1, 1.0), (2, 0.8), (3, 1.0), (4, 0.0)]).x == pytest.approx(1.5)


def test_curves_that_do_not_cross_say_so() -> None:
    below, above = crossing([(16, 0.89), (20, 0.95)]), crossing([(16, 0.99), (80, 0.9)])
    assert (below.kind, below.text(), below.lower_bound) == (CrossingKind.NEVER, "never", None)
    assert (above.kind, above.text(), above.lower_bound) == (CrossingKind.BEYOND, "> 80", 80)


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=20))
def test_every_point_before_the_crossing_holds_the_level(shares: list[float]) -> None:
    found = crossing(list(enumerate(shares)))
    held = [share >= 0.9 for x, share in enumerate(shares) if x <= found.x]
    match found.kind:
        case CrossingKind.NEVER:
            assert held == [False]
        case CrossingKind.CROSSES:
            assert all(held)
            assert shares[len(held)] < 0.9
        case CrossingKind.BEYOND:
            assert all(held)
            assert len(held) == len(shares)
