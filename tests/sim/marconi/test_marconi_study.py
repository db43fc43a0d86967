"""Marconi's experiments: the check vectors, the made-up traces, the tuners, and the command."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from sim.study.marconi.__main__ import main
from sim.study.marconi.caching_systems import CACHING_SYSTEMS, ReplaySetting, replay_systems
from sim.study.marconi.check import Comparison, missed_bounds, run_check
from sim.study.marconi.hybrid_model import HybridModel
from sim.study.marconi.session_trace import MAX_CONTEXT_TOKENS, TraceSpec, check_trace, make_trace

SMALL = ["--sessions", "6", "--sps", "2", "--capacity", "2", "--workers", "1"]


def test_the_trace_of_the_check_is_the_published_one() -> None:
    requests = check_trace()
    tokens = [request.prompt_tokens for request in requests]
    assert (len(requests), sum(tokens), max(tokens)) == (240, 359_520, 2_984)
    assert sum(count for request in requests for _, count in request.answer) == 40_880


def test_everything_is_as_near_to_what_was_published_as_it_must_be() -> None:
    results, comparisons = run_check()
    assert [each for each in comparisons if not each.holds] == []
    assert len(comparisons) == 3 * (4 + 4 + 2)
    windows = [result["systems"]["V2"]["window"] for result in results]
    assert windows == [105, 220, 335]


@pytest.mark.parametrize(
    ("found", "least", "most", "holds"),
    [
        (9.0, False, False, True),
        (11.1, False, False, False),
        (8.9, False, False, False),
        (99.0, True, False, True),
        (8.9, True, False, False),
        (1.0, False, True, True),
        (11.1, False, True, False),
    ],
)
def test_a_bound_holds_on_both_sides_or_one(found: float, least: bool, most: bool, holds: bool) -> None:
    assert Comparison(1, "V1", found, 10.0, 1.0, least=least, most=most).holds == holds


def test_what_is_missed_at_a_point_is_named() -> None:
    rates = {"V1": 0.3, "V2": 0.32, "follow": 0.309}
    systems = {name: {"hit_rate": rate, "peak_gb": 2.0} for name, rate in rates.items()}
    point = {"trace": "agents", "capacity_gb": 2, "systems": systems}
    assert missed_bounds(point) == ["agents, 2 GB: follow finds 30.90 %, the better of V1 and V2 32.00 %"]
    systems["follow"] = {"hit_rate": 0.311, "peak_gb": 2.1}
    assert missed_bounds(point) == ["agents, 2 GB: follow kept 2.100 GB"]


@pytest.mark.parametrize("dataset", ["lmsys", "sharegpt", "swebench"])
def test_traces_are_the_same_each_time_and_bring_their_history(dataset: str) -> None:
    requests = make_trace(TraceSpec(dataset, sessions=8))
    assert requests == make_trace(TraceSpec(dataset, sessions=8))
    assert requests != make_trace(TraceSpec(dataset, sessions=8, seed=1))
    assert [request.time_s for request in requests] == sorted(request.time_s for request in requests)
    assert max(request.prompt_tokens for request in requests) <= MAX_CONTEXT_TOKENS
    session = [request for request in requests if request.session == 3]
    for before, after in pairwise(session):
        grown = (*before.prompt, *before.answer)
        assert after.turn == before.turn + 1
        whole = after.prompt[: len(grown)] == grown
        assert whole == (dataset != "swebench" or after.turn <= 5), "an agent's history changes once it has six steps"


def test_ours_is_not_below_the_others_and_nothing_is_above_its_capacity() -> None:
    for dataset, capacity_bytes in (("lmsys", 10**9), ("sharegpt", 3 * 10**9), ("swebench", 20 * 10**9)):
        requests = make_trace(TraceSpec(dataset, 1.0, sessions=30))
        setting = ReplaySetting(requests, HybridModel(), capacity_bytes, 5)
        runs = replay_systems(setting, list(CACHING_SYSTEMS))
        total = sum(request.prompt_tokens for request in requests)
        rates = {name: 100 * sum(run.reused) / total for name, run in runs.items()}
        assert rates["follow"] >= max(rates["V1"], rates["V2"]) - 1
        assert rates["V3"] >= rates["vLLM+"]
        assert 0 < max(run.peak_bytes for run in runs.values()) <= capacity_bytes
        assert len(runs["follow"].reused) == len(requests)


def test_one_data_set_is_logged_as_the_artifact_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "found.json"
    assert main(["--dataset", "sharegpt", *SMALL, "--bootstrap_multiplier", "2", "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "sharegpt_sps=2.0_nums=6, capacity 2 GB, bootstrap_multiplier 2"
    assert lines[1].startswith("vLLM+: hit rate ")
    assert lines[4].startswith("V3: eff_weight ")
    assert lines[6].startswith("V2 compared to V1: hit_rate_win ")
    assert lines[-1] == "=" * 50
    (result,) = json.loads(out.read_text())["sweeps"]["sharegpt"]
    assert result["systems"]["V1"]["peak_gb"] <= 2


def test_two_workers_find_what_one_does(tmp_path: Path) -> None:
    found = []
    for workers in ("1", "2"):
        out = tmp_path / f"{workers}.json"
        command = ["--dataset", "lmsys", *SMALL[:-2], "--policies", "V1", "follow", "--workers", workers]
        assert main([*command, "--sps", "1", "2", "--out", str(out)]) == 0
        found.append(json.loads(out.read_text())["sweeps"])
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--sps", "0"], "sessions/s must be more than 0, not 0"),
        (["--capacity", "-1"], "a cache of -1 GB is none"),
        (["--sessions", "0"], "at least 1 session"),
        (["--bootstrap_multiplier", "0"], "must be at least 1, not 0"),
        (["--out", "/proc/none/here.json"], "/proc/none"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(wrong: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--dataset", "lmsys", *SMALL, "--policies", "V1", *wrong]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sim.study.marconi:")]
    assert said in line
