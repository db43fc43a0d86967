"""The metrics over records and the split of a request's life, against cases worked by hand."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegaeon.core.record import RequestRecord, mean_attainment, mean_qos, qos, slo_attainment
from aegaeon.core.slo import Slo
from aegaeon.core.timeline import LatencyParts, Phase, PhaseSpan

SLO = Slo(ttft_s=2.0, tpot_s=1.0)  # targets of small whole numbers: the cases below are exact
GAPS = st.lists(st.floats(min_value=0.001, max_value=30.0), min_size=1, max_size=40)


# --- qos: [covered] / total; "miss" books what was covered and starts afresh -----------------------------------------


@pytest.mark.parametrize(
    ("gaps_s", "expected"),
    [
        # On time throughout: targets 2, 3, 4; the end books min(5, 3) of 3.
        ([1, 1, 1], 3 / 3),
        # Exactly on the target is on time: 2 <= 2, 3 <= 3.
        ([2, 1], 3 / 3),
        # The only token misses: nothing is covered, and it starts afresh at the end.
        ([4], 0 / 4),
        # 1 <= 2 covers 2; 6 > 3 misses: book 2, start at 6; 7 - 6 <= 4; the end books min(5, 1).
        ([1, 5, 1], (2 + 1) / 7),
        # 3 > 2 misses with nothing covered; 4 - 3 <= 3 covers 3; 13 - 3 > 4 misses: book 3; 15 - 13 <= 5; min(6, 2).
        ([3, 1, 9, 2], (3 + 2) / 15),
        # The last token misses: 2 <= 3 had covered 3; 12 > 4 books it, and nothing follows.
        ([1, 1, 10], 3 / 12),
        # Two misses in a row: the second finds nothing covered.
        ([3, 4], 0 / 7),
        # The target goes on growing through misses: 3 > 2, then 6 - 3 <= 3 covers 3; the end books min(4, 3).
        ([3, 3], 3 / 6),
    ],
)
def test_qos_of_hand_worked_cases(gaps_s: list[float], expected: float) -> None:
    assert qos(gaps_s, SLO) == pytest.approx(expected, abs=1e-12)


def test_qos_of_no_time_at_all_is_perfect() -> None:
    assert qos([0.0, 0.0], SLO) == 1.0


@given(GAPS)
def test_qos_is_a_share(gaps_s: list[float]) -> None:
    assert 0.0 <= qos(gaps_s, SLO) <= 1.0 + 1e-12


@given(st.floats(min_value=0.001, max_value=2.0), st.lists(st.floats(min_value=0.0, max_value=1.0), max_size=30))
def test_tokens_at_the_target_pace_are_perfect_by_both_metrics(ttft_s: float, gaps_s: list[float]) -> None:
    assert slo_attainment([ttft_s, *gaps_s], SLO) == 1.0
    assert qos([ttft_s, *gaps_s], SLO) == pytest.approx(1.0)


# --- slo_attainment: token k is due at 2 + k -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gaps_s", "expected"),
    [
        ([1, 1, 1], 3 / 3),
        ([2, 1, 1], 3 / 3),  # each exactly when due
        ([2.5], 0 / 1),
        ([1, 1, 10], 2 / 3),  # at 1, 2, 12; due at 2, 3, 4
        ([3, 0.25, 0.25], 1 / 3),  # at 3, 3.25, 3.5; due at 2, 3, 4: a late start is caught up
    ],
)
def test_attainment_of_hand_worked_cases(gaps_s: list[float], expected: float) -> None:
    assert slo_attainment(gaps_s, SLO) == pytest.approx(expected)


# --- records ---------------------------------------------------------------------------------------------------------


def _record(times_s: tuple[float, ...], error: str | None = None) -> RequestRecord:
    return RequestRecord(
        request_id="r",
        model="m",
        arrival_s=100.0,
        prompt_tokens=5,
        new_tokens=len(times_s),
        token_times_s=times_s,
        slo=SLO,
        error=error,
    )


def test_a_record_measures_from_its_arrival() -> None:
    record = _record((101.5, 102.5, 105.5))
    assert record.per_token_s == (1.5, 1.0, 3.0)
    assert record.ttft_s == 1.5
    assert record.tpot_s == 2.0
    assert record.slo_attainment == pytest.approx(2 / 3)  # due at 2, 3, 4; produced at 1.5, 2.5, 5.5
    # 1.5 <= 2, 2.5 <= 3 covers 3; 5.5 > 4 books 3; nothing follows.
    assert record.qos == pytest.approx(3 / 5.5)


def test_one_token_has_no_time_per_output_token() -> None:
    assert _record((101.0,)).tpot_s is None


@pytest.mark.parametrize("record", [_record(()), _record((101.0,), error="connection lost")])
def test_dropped_and_unfinished_requests_count_nothing(record: RequestRecord) -> None:
    assert not record.completed
    assert (record.slo_attainment, record.qos) == (0.0, 0.0)


def test_means_are_over_requests_not_tokens() -> None:
    records = [_record((101.0,)), _record((101.0, 102.0, 112.0)), _record(())]
    assert mean_attainment(records) == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert mean_qos(records) == pytest.approx((1 + 3 / 12 + 0) / 3)
    assert (mean_attainment([]), mean_qos([])) == (1.0, 1.0)


# --- the six parts of a life -----------------------------------------------------------------------------------------


def test_parts_of_a_hand_worked_life() -> None:
    spans = [
        PhaseSpan(Phase.CONTROL, 0.0, 0.5),
        PhaseSpan(Phase.SWITCH, 1.0, 2.0, "prefill-0"),  # waiting, in the end
        PhaseSpan(Phase.KV, 2.0, 2.5, "prefill-0"),
        PhaseSpan(Phase.PREFILL, 3.0, 5.0, "prefill-0"),  # the first token, at 5
        PhaseSpan(Phase.KV, 6.0, 6.25, "decode-0"),
        PhaseSpan(Phase.DECODE, 6.25, 7.0, "decode-0"),
        PhaseSpan(Phase.SWITCH, 7.25, 8.0, "decode-0"),
        PhaseSpan(Phase.DECODE, 8.0, 9.0, "decode-0"),
    ]
    assert LatencyParts.of(0.0, 5.0, 9.0, spans) == LatencyParts(
        prefill_wait_s=2.0,  # 5 - (0.5 + 0.5 + 2)
        prefill_s=2.0,
        decode_wait_s=2.0,  # 4 - (0.25 + 0.75 + 1)
        decode_s=1.75,
        control_s=0.5,
        block_s=0.75,
    )


def test_a_span_across_the_first_token_shortens_both_waits() -> None:
    parts = LatencyParts.of(0.0, 5.0, 10.0, [PhaseSpan(Phase.KV, 4.0, 6.0)])
    assert (parts.prefill_wait_s, parts.decode_wait_s, parts.block_s) == (4.0, 4.0, 2.0)


def test_a_life_without_spans_is_all_waiting() -> None:
    assert LatencyParts.of(1.0, 4.0, 9.0, []) == LatencyParts(3.0, 0.0, 5.0, 0.0, 0.0, 0.0)


@given(
    cuts=st.lists(st.integers(min_value=0, max_value=1000), min_size=2, max_size=24, unique=True).map(sorted),
    first=st.integers(min_value=0, max_value=1000),
    data=st.data(),
)
def test_the_parts_are_the_whole_life(cuts: list[int], first: int, data: st.DataObject) -> None:
    phases = st.sampled_from([*Phase, None])
    drawn = [(data.draw(phases), start, end) for start, end in pairwise(cuts)]
    spans = [PhaseSpan(phase, float(start), float(end)) for phase, start, end in drawn if phase is not None]
    parts = LatencyParts.of(0.0, float(first), 1000.0, spans)
    total = (
        parts.prefill_wait_s + parts.prefill_s + parts.decode_wait_s + parts.decode_s + parts.control_s + parts.block_s
    )
    assert total == pytest.approx(1000.0)
