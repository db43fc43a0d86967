"""The metrics of many requests at once, against the records' own, and where curves cross."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegaeon.core import record
from aegaeon.core.slo import Slo
from plots.crossing import CrossingKind, crossing
from plots.token_gaps import Metric, TokenGaps

gap_s = st.one_of(st.sampled_from([0.0, 0.05, 0.1, 0.2, 10.0]), st.floats(0.0, 30.0))
requests = st.lists(st.lists(gap_s, min_size=1, max_size=40), min_size=1, max_size=12)
slos = st.builds(Slo, st.floats(0.01, 20.0), st.floats(0.001, 1.0))


@given(requests, slos)
def test_each_request_scores_as_its_record_does(per_token: list[list[float]], slo: Slo) -> None:
    gaps = TokenGaps.of(per_token, unit_s=1.0)
    attainment = gaps.by_request(Metric.SLO_ATTAINMENT, slo)
    qos = gaps.by_request(Metric.QOS, slo)
    assert attainment.tolist() == [record.slo_attainment(request, slo) for request in per_token]
    assert qos.tolist() == [record.qos(request, slo) for request in per_token]


def test_batches_of_requests_score_as_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(7)
    per_token = [random.exponential(0.1, random.integers(1, 60)).tolist() for _ in range(100)]
    gaps, slo = TokenGaps.of(per_token, 1.0), Slo(0.1, 0.1)
    expected = {metric: gaps.by_request(metric, slo).tolist() for metric in Metric}
    monkeypatch.setattr("plots.token_gaps.BATCH_TOKENS", 150)
    assert {metric: gaps.by_request(metric, slo).tolist() for metric in Metric} == expected


@pytest.mark.parametrize("metric", Metric)
def test_a_dropped_request_counts_zero(metric: Metric) -> None:
    gaps = TokenGaps.of([[50.0, 20.0], [-1]], unit_s=1e-3)
    assert gaps.by_request(metric, Slo()).tolist() == [1.0, 0.0]
    assert gaps.mean(metric, Slo()) == 0.5


def test_the_unit_is_seconds() -> None:
    assert TokenGaps.of([[1500.0]], unit_s=1e-3).gaps_s.tolist() == [1.5]


@pytest.mark.parametrize("per_token", [[[1.0, -0.5]], [[1.0, float("nan")]], [[-1.0, -1.0]]])
def test_times_that_run_backwards_are_refused(per_token: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="negative"):
        TokenGaps.of(per_token, unit_s=1.0)


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
