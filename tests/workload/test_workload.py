"""The synthetic workloads, their length sources, and the readers of published traces."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from aegaeon import workload
from aegaeon.workload import (
    MIN_OUTPUT_TOKENS,
    SHAREGPT_VARIABLE,
    Arrival,
    QuantileTable,
    SyntheticSpec,
    WorkloadError,
    default_lengths,
    estimate_tokens,
    read_trace,
    sharegpt_lengths,
    spread,
    synthesize,
    tokenizer_counter,
    write_csv,
)

TABLE = QuantileTable.shipped()


# --- arrivals --------------------------------------------------------------------------------------------------------


def test_the_same_spec_gives_the_same_workload() -> None:
    spec = SyntheticSpec(models=5, rate_per_s=0.5, seed=3)
    assert synthesize(spec, TABLE) == synthesize(spec, TABLE)


def test_seeds_give_different_workloads() -> None:
    one, other = (synthesize(SyntheticSpec(models=5, rate_per_s=0.5, seed=seed), TABLE) for seed in (0, 1))
    assert one != other


def test_more_models_leave_the_others_unchanged() -> None:
    few = synthesize(SyntheticSpec(models=4, rate_per_s=0.2), TABLE)
    many = synthesize(SyntheticSpec(models=9, rate_per_s=0.2), TABLE)
    names = {arrival.model for arrival in few}
    assert len(names) == 4
    assert [arrival for arrival in many if arrival.model in names] == few


def test_a_longer_duration_continues_the_workload() -> None:
    short = synthesize(SyntheticSpec(models=3, rate_per_s=0.5, duration_s=60), TABLE)
    long = synthesize(SyntheticSpec(models=3, rate_per_s=0.5, duration_s=600), TABLE)
    # The cap of int(duration * rate) may cut the short one earlier, never change what it has.
    assert set(short) <= set(long)


def test_arrivals_are_poisson_and_capped_per_model() -> None:
    arrivals = synthesize(SyntheticSpec(models=400, rate_per_s=0.5, duration_s=60), TABLE)
    counts = Counter(arrival.model for arrival in arrivals)
    assert max(counts.values()) == 30  # int(60 * 0.5), reached by about half of the models
    # E[min(Poisson(30), 30)] is 27.8, with a standard error of 0.15 over 400 models.
    assert np.mean(list(counts.values())) == pytest.approx(27.8, abs=0.6)
    gaps_s = np.concatenate([np.diff([a.time_s for a in arrivals if a.model == name]) for name in list(counts)[:50]])
    assert np.std(gaps_s) / np.mean(gaps_s) == pytest.approx(1.0, abs=0.1)  # exponential gaps: cv 1


def test_arrivals_come_in_order_within_the_duration_in_milliseconds() -> None:
    times_s = [arrival.time_s for arrival in synthesize(SyntheticSpec(models=20, rate_per_s=1.0), TABLE)]
    assert times_s == sorted(times_s)
    assert 0 <= times_s[0] <= times_s[-1] < 120
    assert all(round(time_s, 3) == time_s for time_s in times_s)


def test_the_request_limit_is_meant_in_decimals() -> None:
    # 100 * 0.29 is 28.999... in floating point.
    arrivals = synthesize(SyntheticSpec(models=200, rate_per_s=0.29, duration_s=100), TABLE)
    assert max(Counter(arrival.model for arrival in arrivals).values()) == 29


# --- lengths ---------------------------------------------------------------------------------------------------------


def test_shipped_lengths_have_the_published_quantiles() -> None:
    drawn = TABLE.draw(np.random.default_rng(0).random((50_000, 2)))
    quantiles = np.quantile(drawn, (0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99), axis=0)
    assert quantiles[:, 0] == pytest.approx([9, 118, 580, 1120, 1565, 1764, 2190], rel=0.08)
    assert quantiles[:, 1] == pytest.approx([24, 134, 266, 403, 587, 743, 970], rel=0.04)
    assert drawn.mean(axis=0) == pytest.approx([700, 297], rel=0.03)


def test_scales_multiply_lengths() -> None:
    plain = synthesize(SyntheticSpec(models=6, rate_per_s=0.5), TABLE)
    scaled = synthesize(SyntheticSpec(models=6, rate_per_s=0.5, input_scale=2.0, output_scale=3.0), TABLE)
    assert [a.input_tokens for a in scaled] == [2 * a.input_tokens for a in plain]
    assert [a.output_tokens for a in scaled] == [3 * a.output_tokens for a in plain]


@pytest.mark.parametrize("output_scale", [0.001, 1.0, 50.0])
def test_lengths_stay_within_the_context_and_outputs_keep_their_least(output_scale: float) -> None:
    spec = SyntheticSpec(models=10, rate_per_s=1.0, output_scale=output_scale, max_context_tokens=500)
    arrivals = synthesize(spec, TABLE)
    assert min(a.output_tokens for a in arrivals) >= MIN_OUTPUT_TOKENS
    assert max(a.input_tokens + a.output_tokens for a in arrivals) <= 500
    assert min(a.input_tokens for a in arrivals) >= 1


def _sharegpt_file(directory: Path) -> Path:
    talks = [
        {
            "conversations": [
                {"from": "human", "value": "a" * 40},  # 10 tokens
                {"from": "gpt", "value": "b" * 80},  # 20
                {"from": "human", "value": "c" * 20},  # 5
                {"from": "gpt", "value": "d" * 400},  # 100
            ]
        },
        {
            "conversations": [
                {"from": "gpt", "value": "no prompt came before"},
                {"from": "human", "value": "unanswered"},
            ]
        },
    ]
    path = directory / "sharegpt.json"
    path.write_text(json.dumps(talks))
    return path


def test_sharegpt_prompts_are_the_human_turns_so_far(tmp_path: Path) -> None:
    lengths = sharegpt_lengths(_sharegpt_file(tmp_path))
    assert lengths.tokens.tolist() == [[10, 20], [15, 100]]


def test_sharegpt_pairs_are_drawn_together(tmp_path: Path) -> None:
    drawn = sharegpt_lengths(_sharegpt_file(tmp_path)).draw(np.random.default_rng(0).random((200, 2)))
    pairs = Counter(map(tuple, drawn.tolist()))
    assert set(pairs) == {(10, 20), (15, 100)}
    assert min(pairs.values()) > 60


def test_the_environment_chooses_the_length_source(tmp_path: Path) -> None:
    path = _sharegpt_file(tmp_path)
    assert str(path) in default_lengths({SHAREGPT_VARIABLE: str(path)}).description
    assert "shipped quantile table" in default_lengths({}).description


def test_token_estimate_counts_bytes() -> None:
    assert [estimate_tokens(text) for text in ("", "a", "abcd", "abcde", "ééé")] == [0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a JSON file"),
        ('[{"x": 1}]', "expected a list"),
        ("[]", "no human turn"),
        ("5", "expected a list"),
        ("[" * 10**5, "not a JSON file"),
        ("\0", "not a JSON file"),
        ('[{"conversations": [{"from": "human", "value": 5}]}]', "expected a list"),
    ],
)
def test_a_bad_sharegpt_file_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(WorkloadError, match=message) as caught:
        sharegpt_lengths(path)
    assert str(path) in str(caught.value)


def test_half_a_character_in_a_sharegpt_file_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "half.json"
    turns = [{"from": "human", "value": "\ud800"}, {"from": "gpt", "value": "12345678"}]
    path.write_text(json.dumps([{"conversations": turns}]))
    assert sharegpt_lengths(path).tokens.tolist() == [[1, 2]]


def test_a_tokenizer_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("[]")
    with pytest.raises(WorkloadError, match=r"tokenizer\.json"):
        tokenizer_counter(tmp_path)


def test_a_missing_sharegpt_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match=r"missing\.json"):
        default_lengths({SHAREGPT_VARIABLE: str(tmp_path / "missing.json")})


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_written_workload_reads_back(tmp_path: Path) -> None:
    arrivals = synthesize(SyntheticSpec(models=7, rate_per_s=0.5), TABLE)
    write_csv(arrivals, tmp_path / "new" / "workload.csv")
    assert read_trace(tmp_path / "new" / "workload.csv") == arrivals


def test_written_columns_are_the_artifacts(tmp_path: Path) -> None:
    write_csv([Arrival(3723.004, "synth_model_00", 12, 34)], tmp_path / "w.csv")
    assert (tmp_path / "w.csv").read_text().splitlines() == [
        "Request Time,Model Name,Input Length,Output Length",
        "01:02:03.004,synth_model_00,12,34",
    ]


def test_azure_traces_start_at_their_first_request(tmp_path: Path) -> None:
    path = tmp_path / "azure.csv.gz"
    with gzip.open(path, "wt") as file:
        file.write("TIMESTAMP,ContextTokens,GeneratedTokens\n")
        file.write("2023-11-16 23:59:59.5000000,374,44\n2023-11-17 00:00:01.2500000,396,109\n")
    assert read_trace(path) == [Arrival(0.0, "azure", 374, 44), Arrival(1.75, "azure", 396, 109)]


def test_azure_times_may_carry_a_zone(tmp_path: Path) -> None:
    path = tmp_path / "azure.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2024-05-10 00:00:02.5+00:00,1,2\n2024-05-10 00:00:00+00:00,3,4\n"  # out of order: sorted
    )
    assert [(a.time_s, a.input_tokens) for a in read_trace(path)] == [(0.0, 3), (2.5, 1)]


def test_lmsys_traces_name_their_models(tmp_path: Path) -> None:
    path = tmp_path / "vtc.csv"
    path.write_text("req_id,adapter_dir,prompt_len,output_len,req_time\n0,lora-13,13,199,0.25\n1,lora-2,36,137,0.5\n")
    assert read_trace(path) == [Arrival(0.25, "lora-13", 13, 199), Arrival(0.5, "lora-2", 36, 137)]


def test_mooncake_traces_are_json_lines_with_milliseconds(tmp_path: Path) -> None:
    path = tmp_path / "mooncake.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.write('{"timestamp": 2500, "input_length": 3, "output_length": 4, "hash_ids": [1]}\n')
        file.write('{"timestamp": 0, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1]}\n')
    assert read_trace(path) == [Arrival(0.0, "mooncake", 6758, 500), Arrival(2.5, "mooncake", 3, 4)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", "Expecting value"),
        ("[1, 2]", "expected a JSON object"),
        ('{"id": "trace_0002", "requests": []}', "no 'timestamp' in it; known lines have: timestamp"),
        ('{"timestamp": 1, "input_length": 5}', "no 'output_length' in it"),
        ('{"timestamp": 1, "input_length": 5, "output_length": -1}', "at least 1 token"),
        ('{"timestamp": 1, "input_length": 5, "output_length": 2.5}', "not a whole number"),
        ('{"timestamp": 1, "input_length": 5, "output_length": null}', "not a number of tokens"),
        ('{"timestamp": null, "input_length": 5, "output_length": 6}', "None is not a time"),
        ('{"timestamp": "soon", "input_length": 5, "output_length": 6}', "soon"),
        ('{"timestamp": ' + "[" * 10**5, "recursion"),
        ('{"timestamp": 1, "input_length": 1' + "0" * 400 + ', "output_length": 6}', "too large"),
        ('{"timestamp": 1, "input_length": 1' + "0" * 5000 + ', "output_length": 6}', "digits"),
        ('{"timestamp": 1, "input_length": 1e300, "output_length": 6}', "tokens are more than"),
        ('{"timestamp": 1' + "0" * 400 + ', "input_length": 5, "output_length": 6}', "too large"),
        ('{"timestamp": 1, "input_length": Infinity, "output_length": 6}', "not a whole number"),
        ('{"timestamp": 1, "input_length": NaN, "output_length": 6}', "not a whole number"),
        ('{"timestamp": 1, "input_length": true, "output_length": 6}', "not a number of tokens"),
        ('{"timestamp": 1, "input_length": [], "output_length": 6}', "not a number of tokens"),
        ('{"timestamp": -Infinity, "input_length": 5, "output_length": 6}', "must not be negative"),
        ('{"timestamp": NaN, "input_length": 5, "output_length": 6}', "must not be negative"),
        ('{"timestamp": false, "input_length": 5, "output_length": 6}', "False is not a time"),
        ('{"timestamp": "' + "x" * 10**6 + '", "input_length": 5, "output_length": 6}', "could not convert"),
        ("\0", "Expecting value"),
    ],
    ids=lambda value: value[:60],
)
def test_errors_in_json_lines_name_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(f'{{"timestamp": 0, "input_length": 1, "output_length": 1}}\n{line}\n')
    with pytest.raises(WorkloadError, match=message) as caught:
        read_trace(path)
    assert str(caught.value).startswith(f"{path}:2: ")


@pytest.mark.parametrize("model", ["null", "5", "[]", '""', '"  "', r'"a\u0000b"', r'"\ud800"'])
def test_a_model_of_json_lines_must_have_a_name_that_can_be_written(tmp_path: Path, model: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(f'{{"timestamp": 0, "input_length": 1, "output_length": 1, "model": {model}}}\n')
    with pytest.raises(WorkloadError, match=r"is not the name of a model|the model name is empty") as caught:
        read_trace(path)
    assert str(caught.value).startswith(f"{path}:1: ")


@pytest.mark.parametrize(
    ("first", "then"),
    [('"00:00:01.0"', "5"), ('"2024-05-10 00:00:00"', "5"), ("5", '"00:00:01.0"'), ('"00:00:01.0"', "null")],
)
def test_json_lines_whose_times_are_of_several_kinds_are_refused(tmp_path: Path, first: str, then: str) -> None:
    path = tmp_path / "trace.jsonl"
    line = '{{"timestamp": {}, "input_length": 1, "output_length": 1}}\n'
    path.write_text(line.format(first) + line.format(then))
    with pytest.raises(WorkloadError) as caught:
        read_trace(path)
    assert str(caught.value).startswith(f"{path}:2: ")


ARTIFACT_HEADER = "Request Time,Model Name,Input Length,Output Length\n"


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        ("when,what\n1,2\n", 1, "unknown columns"),
        ("", 1, "unknown columns"),
        (ARTIFACT_HEADER + "00:00:01.000,m,5,6\nsoon,m,5,6\n", 3, "HH:MM:SS"),
        (ARTIFACT_HEADER + "00:00:01.000,m,five,6\n", 2, "five"),
        (ARTIFACT_HEADER + "00:00:01.000,m,5\n", 2, "fewer columns"),
        (ARTIFACT_HEADER + "00:00:01.000,m,-1,5\n", 2, "at least 1 token"),
        (ARTIFACT_HEADER + "00:00:01.000,m,5,-1\n", 2, "at least 1 token"),
        (ARTIFACT_HEADER + "00:00:01.000,m,5,1.5\n", 2, "not a whole number"),
        (ARTIFACT_HEADER + "00:00:-1.000,m,5,6\n", 2, "must not be negative"),
        (ARTIFACT_HEADER + "00:00:nan,m,5,6\n", 2, "must not be negative"),
        (ARTIFACT_HEADER + "00:00:01.000,,5,6\n", 2, "model name is empty"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,5,6\n", 2, "yesterday"),
        (ARTIFACT_HEADER + "00:00:01.000,m,5,6,7\n", 2, "more columns"),
        (ARTIFACT_HEADER + "00:00:01.000,m,1" + "0" * 400 + ",6\n", 2, "not a whole number"),
        (ARTIFACT_HEADER + "00:00:01.000,m,1" + "0" * 20 + ",6\n", 2, "tokens are more than"),
        (ARTIFACT_HEADER + "1" + "0" * 400 + ":00:00,m,5,6\n", 2, "too large"),
        (ARTIFACT_HEADER + "00:00:01.000,m\0,5,6\n", 2, "not the name of a model"),
        (ARTIFACT_HEADER + "00:00:01.000,m,5,\0\n", 2, "could not convert"),
        (ARTIFACT_HEADER + "00:00:01.000," + "m" * 200_000 + ",5,6\n", 2, "field larger than"),
        (ARTIFACT_HEADER + "00:00:01.000,m,5,6\n" + '{"timestamp": 1}\n', 3, "fewer columns"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_errors_name_file_and_line(tmp_path: Path, content: str, line: int, message: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(content)
    with pytest.raises(WorkloadError, match=message) as caught:
        read_trace(path)
    assert str(caught.value).startswith(f"{path}:{line}: ")


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.csv", b"\xff\xfe\x00"), ("b.csv.gz", b"not gzip"), ("c.csv.gz", gzip.compress(b"x" * 999, mtime=0)[:-12])],
)
def test_unreadable_files_are_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WorkloadError, match=name):
        read_trace(tmp_path / name)


def test_missing_and_empty_traces_are_named(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match=r"none\.csv"):
        read_trace(tmp_path / "none.csv")
    (tmp_path / "empty.csv").write_text(ARTIFACT_HEADER)
    with pytest.raises(WorkloadError, match="no request"):
        read_trace(tmp_path / "empty.csv")


VTC_HEADER = "req_time,prompt_len,output_len,adapter_dir\n"


def read_text(directory: Path, name: str, text: str, unit: str | None = None) -> list[Arrival]:
    """The trace that a file with this text is."""
    (directory / name).write_bytes(text.encode())
    return read_trace(directory / name, unit)


@pytest.mark.parametrize(
    "start", ["1700000000", "1700000000000", "1700000000000000", "1700000000000000000", "10000000"]
)
def test_times_since_1970_count_from_the_first_request_in_any_unit(tmp_path: Path, start: str) -> None:
    seconds = 10 ** max(0, len(start) - 10)
    rows = f"{int(start) + 3 * seconds},3,5,a\n{start},3,5,b\n"  # out of order
    arrivals = read_text(tmp_path, "epoch.csv", VTC_HEADER + rows)
    assert [(a.time_s, a.model) for a in arrivals] == [(0.0, "b"), (3.0, "a")]


def test_fractions_of_times_since_1970_are_kept(tmp_path: Path) -> None:
    arrivals = read_text(tmp_path, "epoch.csv", VTC_HEADER + "1700000000.25,3,5,a\n1700000001.5,3,5,b\n")
    assert [a.time_s for a in arrivals] == [0.0, 1.25]


def test_a_lead_of_a_trace_that_has_its_own_clock_is_kept(tmp_path: Path) -> None:
    assert [a.time_s for a in read_text(tmp_path, "own.csv", VTC_HEADER + "600,3,5,a\n601,3,5,b\n")] == [600.0, 601.0]


def test_burstgpt_traces_are_read_without_their_failures(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    header = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    failed = "45,GPT-4,1087,0,1087,API log\n46,GPT-4,0,7,7,API log\n"
    rows = f"5,ChatGPT,472,18,490,Conversation log\n{failed}118,GPT-4,417,276,693,API log\n"
    arrivals = read_text(tmp_path, "burst.csv", header + rows)
    assert arrivals == [Arrival(5.0, "ChatGPT", 472, 18), Arrival(118.0, "GPT-4", 417, 276)]
    assert "requests without a prompt or for no output are left out: 2" in caplog.text


def test_burstgpt_traces_with_sessions_are_read_too(tmp_path: Path) -> None:
    header = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    row = "5.0,1,2.5,ChatGPT,472.0,18.0,490.0,Conversation log\n"
    assert read_text(tmp_path, "burst.csv", header + row) == [Arrival(5.0, "ChatGPT", 472, 18)]


def test_a_trace_of_failures_only_says_so(tmp_path: Path) -> None:
    with pytest.raises(
        WorkloadError, match=r"no request in it with a prompt and output tokens \(2 without are left out\)"
    ):
        read_text(tmp_path, "burst.csv", VTC_HEADER + "1,3,0,a\n2,3,0,a\n")


@pytest.mark.parametrize(
    ("lines", "times_s"),
    [
        ('{"timestamp": 0, "X": 1}\n{"timestamp": 2500, "X": 1}\n', [0.0, 2.5]),  # far apart: milliseconds
        ('{"timestamp": 0, "X": 1}\n{"timestamp": 4, "X": 1}\n', [0.0, 4.0]),
        ('{"timestamp": 0.5, "X": 1}\n{"timestamp": 100.25, "X": 1}\n', [0.5, 100.25]),
        ('{"timestamp": 0, "X": 1, "hash_ids": [1]}\n{"timestamp": 4, "X": 1, "hash_ids": [2]}\n', [0.0, 0.004]),
        ('{"timestamp": 1700000000.5, "X": 1}\n{"timestamp": 1700000001.5, "X": 1}\n', [0.0, 1.0]),
        ('{"timestamp": 1700000000500, "X": 1}\n{"timestamp": 1700000001500, "X": 1}\n', [0.0, 1.0]),
        ('{"timestamp_ms": 3, "X": 1}\n{"timestamp_ms": 4, "X": 1}\n', [0.003, 0.004]),
        ('{"timestamp_s": 100, "X": 1}\n{"timestamp_s": 900, "X": 1}\n', [100.0, 900.0]),
        (
            '{"arrival_time": "2024-05-10T00:00:00Z", "X": 1}\n{"arrival_time": "2024-05-10T00:00:02Z", "X": 1}\n',
            [0, 2],
        ),
    ],
)
def test_json_lines_tell_their_unit(tmp_path: Path, lines: str, times_s: list[float]) -> None:
    text = lines.replace('"X": 1', '"input_length": 3, "output_length": 4')
    assert [a.time_s for a in read_text(tmp_path, "lines.jsonl", text)] == times_s


def test_a_unit_that_is_given_counts(tmp_path: Path) -> None:
    line = '{"timestamp": 4, "input_length": 3, "output_length": 4, "hash_ids": [1]}\n'
    assert [a.time_s for a in read_text(tmp_path, "lines.jsonl", line, "s")] == [4.0]
    assert [a.time_s for a in read_text(tmp_path, "table.csv", VTC_HEADER + "4,3,5,a\n", "ms")] == [0.004]


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_line_endings_marks_and_blank_lines_do_not_matter(tmp_path: Path, ending: str, mark: str) -> None:
    table = mark + ending.join([VTC_HEADER.strip(), "1,3,5,a", "", "2,4,6,b", ""])
    assert read_text(tmp_path, "t.csv", table) == [Arrival(1.0, "a", 3, 5), Arrival(2.0, "b", 4, 6)]
    line = '{"timestamp": 1, "input_length": 3, "output_length": 5, "model": "a"}'
    assert read_text(tmp_path, "t.jsonl", mark + ending.join([line, "", line, ""])) == [Arrival(1.0, "a", 3, 5)] * 2


@pytest.mark.parametrize(
    "header",
    [
        "REQ_TIME,PROMPT_LEN,OUTPUT_LEN,ADAPTER_DIR",
        " Req Time , Prompt Len, Output Len ,Adapter Dir",
        "Request Time;Input Length;Output Length;Model Name",
        "arrival_time\tinput_tokens\toutput_tokens\tmodel",
    ],
)
def test_headers_may_be_written_otherwise(tmp_path: Path, header: str) -> None:
    between = next(sign for sign in ";\t," if sign in header)
    text = f"{header}\n" + between.join(["1.5", "3", "5", " a "]) + "\n"
    assert read_text(tmp_path, "t.csv", text) == [Arrival(1.5, "a", 3, 5)]


@pytest.mark.parametrize("name", ["empty.csv", "empty.jsonl", "blank.csv"])
def test_an_empty_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(WorkloadError, match=rf"{name}.*(the file is empty|no request in it)"):
        read_text(tmp_path, name, "\n\n" if name.startswith("blank") else "")


def test_each_request_knows_the_line_it_came_from(tmp_path: Path) -> None:
    arrivals = read_text(tmp_path, "t.csv", VTC_HEADER + "2,3,5,a\n\n1,3,5,b\n")
    assert [(a.model, a.line) for a in arrivals] == [("b", 4), ("a", 2)]


def test_spreading_a_trace_changes_models_only() -> None:
    trace = [Arrival(float(i), "azure", i + 1, 20) for i in range(300)]
    models = ["a", "b", "c"]
    result = spread(trace, models, seed=1)
    assert [(a.time_s, a.input_tokens) for a in result] == [(a.time_s, a.input_tokens) for a in trace]
    counts = Counter(a.model for a in result)
    assert set(counts) == set(models)
    assert min(counts.values()) > 60


# --- command line ----------------------------------------------------------------------------------------------------


def test_the_script_runs_from_anywhere_and_says_where_lengths_come_from(tmp_path: Path) -> None:
    arguments = ["--num-models", "2", "3", "--arrival-rate", "0.1", "0.5", "--inlen-scale", "2"]
    command = [sys.executable, workload.__file__, *arguments]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={}, check=True)
    assert "shipped quantile table" in result.stdout
    names = {file.name for file in (tmp_path / "workloads").iterdir()}
    assert names == {f"synth-{models}-{rate}-2.0-1.0.csv" for models in (2, 3) for rate in (0.1, 0.5)}


@pytest.mark.parametrize(
    "arguments",
    [
        "--num-models 0 --arrival-rate 0.1",
        "--num-models 1 --arrival-rate -1",
        "--num-models 1 --arrival-rate nan",
        "--num-models 1 --arrival-rate 1 --duration 0",
        "--num-models 1 --arrival-rate 1 --max-context 16",
        "--num-models 1 --arrival-rate 1 --seed -1",
        "--num-models 1 --arrival-rate 1 --tokenizer .",
    ],
)
def test_bad_values_are_refused_by_name(arguments: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert workload.main([*arguments.split(), "--out", str(tmp_path)]) == 2
    assert "--" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
