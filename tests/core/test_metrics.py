"""The metrics of many requests at once, against the records' own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegaeon.core import record
from aegaeon.core.slo import Slo
from aegaeon.metrics import Metric, RunMetrics, TokenBatch, TokenGaps

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


@given(requests, st.lists(slos, min_size=12, max_size=12), st.floats(0.0, 100.0))
def test_a_batch_scores_as_records_of_its_times_do(
    per_token: list[list[float]], targets: list[Slo], arrival_s: float
) -> None:
    targets = targets[: len(per_token)]
    counts, starts_s = [len(request) for request in per_token], [arrival_s] * len(per_token)
    batch = TokenBatch.of_times([arrival_s + np.cumsum(request) for request in per_token], counts, starts_s, targets)
    elapsed_s = np.split(batch.elapsed_s, np.cumsum(counts)[:-1])
    on_time = [
        sum(time_s <= slo.due_s(0.0, index) + 1e-9 for index, time_s in enumerate(times_s)) / len(times_s)
        for times_s, slo in zip(elapsed_s, targets, strict=True)
    ]
    assert batch.slo_attainment().tolist() == on_time


def test_a_run_is_summed_up() -> None:
    slo = Slo(1.0, 0.1)
    records = [
        record.RequestRecord("a", "m", 0.0, 1, 2, (0.5, 0.6), slo),
        record.RequestRecord("b", "n", 1.0, 1, 2, (2.5, 2.7), slo),
        record.RequestRecord("c", "n", 2.0, 1, 2, (), slo, error="full"),
    ]
    seen = RunMetrics.of(records)
    assert (seen.requests, seen.failed, seen.tokens) == (3, 1, 4)
    assert (seen.slo_attainment, seen.worst_model) == (pytest.approx(1 / 3), 0.0)
    assert (seen.ttft_s.p50, seen.tpot_s.p90) == (pytest.approx(1.0), pytest.approx(0.19))
    assert np.isnan(RunMetrics.of([]).ttft_s.p50)
