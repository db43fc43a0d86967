"""The study of what keeping KV is worth: replays against a set of all names, and the command on tiny inputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aegaeon.latency.files.profile_book import ProfileBook
from aegaeon.latency.files.shipped import shipped_profiles
from aegaeon.memory.eviction import EVICTIONS
from sim.simulate import main as simulate_command
from sim.study.hardware import HardwareOptions, make_hardware
from sim.study.prefix_replay import replay, unlimited
from sim.study.prefix_reuse import main
from sim.study.scenario import Scenario, make_scenario
from sim.workloads.sessions import SessionSpec, make_sessions

LINES = [
    {"timestamp": 1000 * index, "input_length": 2100, "output_length": 5, "hash_ids": [0, *ids]}
    for index, ids in enumerate([(1, 2, 3), (4, 5, 6), (1, 2, 7), (1, 2, 3), (4, 5, 6)])
]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "mooncake.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in LINES))
    return path


def sessions() -> Scenario:
    arrivals = make_sessions(SessionSpec(1, 1.0, 60.0))
    return make_scenario(arrivals, "sessions", ProfileBook.open(shipped_profiles()), "h100", ("qwen2.5-7b",))


@pytest.mark.parametrize("policy", sorted(EVICTIONS))
def test_a_cache_for_everything_finds_what_a_set_of_all_names_does(policy: str) -> None:
    scenario, constants = sessions(), make_hardware(HardwareOptions(), 1).constants
    most = unlimited(scenario)
    assert 0.5 < most.hit_rate < 1.0
    whole = replay(scenario, policy, most.kept_bytes + (10 << 30), constants)
    assert (whole.prompt_tokens, whole.found_tokens) == (most.prompt_tokens, most.found_tokens)
    assert (whole.kept_bytes, whole.evicted_bytes) == (most.kept_bytes, 0)
    small = replay(scenario, policy, 1 << 30, constants)
    assert 0 < small.found_tokens < most.found_tokens
    assert small.evicted_bytes > 0


def test_the_study_of_a_trace(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "reuse.json"
    assert main(["--trace", str(trace), "--shares", "1", "--policies", "lru", "--out", str(out)]) == 0
    (caches,) = json.loads(out.read_text())["caches"]
    found = 512 * (0 + 1 + 3 + 4 + 4)
    assert caches["unlimited"]["hit_rate"] == pytest.approx(found / (5 * 2100))
    assert list(caches["curves"]) == ["lru"]
    assert "58.51%" in capsys.readouterr().out


def test_the_study_of_a_market_beside_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "reuse.json"
    out.write_text('{"caches": []}')
    assert (
        main(["--market", "1", "2", "--session-rate", "0.3", "--duration", "30", "--devices", "2", "--out", str(out)])
        == 0
    )
    results = json.loads(out.read_text())
    assert results["caches"] == []
    assert [point["models"] for point in results["market"]["curves"]["off"]] == [1, 2]
    assert all(point["hit_rate"] > 0 for point in results["market"]["curves"]["slo"])
    assert "ratio unknown" in capsys.readouterr().out


def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--trace", str(tmp_path / "none.jsonl")]) == 2
    assert "none.jsonl: cannot be read" in capsys.readouterr().err


def test_a_trace_with_names_is_simulated_with_and_without_reuse(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--trace", str(trace), "--policy", "slack", "--devices", "1xh100", "--out", str(tmp_path)]
    summaries = []
    for policy in ("lru", "off"):
        assert simulate_command([*command, "--prefix-cache", policy]) == 0
        (point,) = json.loads((tmp_path / "sim-trace-mooncake.summary.json").read_text())["points"].values()
        summaries.append(point)
    assert summaries[0]["prefix_cache"]["found_tokens"] == 512 * 12
    assert "prefix_cache" not in summaries[1]
    assert simulate_command([*command, "--bound"]) == 2
    assert "add --prefix-cache off" in capsys.readouterr().err
    assert simulate_command([*command, "--bound", "--prefix-cache", "off"]) == 0


def test_sessions_are_simulated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--num-models", "2", "--session-rate", "0.1", "--duration", "30", "--policy", "slack"]
    assert simulate_command([*command, "--devices", "2xh100", "--out", str(tmp_path)]) == 0
    (summary,) = tmp_path.glob("sim-sessions2-rate0.1-*.summary.json")
    (point,) = json.loads(summary.read_text())["points"].values()
    assert point["prefix_cache"]["hit_rate"] > 0
    assert "found" in capsys.readouterr().out
