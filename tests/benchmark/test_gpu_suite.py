"""The GPU suite without a GPU: it says so, keeps what it has, and its measurements run on the CPU's copying mode."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from aegaeon.core.command import EvictWeights, LoadWeights, StartTurn
from aegaeon.core.event import RequestCancelled
from aegaeon.profiling.target import copying_target
from aegaeon.scheduler.log import LogEntry
from benchmark import gpu_suite
from benchmark.e2e.job import LengthLimits
from benchmark.gpu import pool as gpu_pool
from benchmark.gpu.pool import PoolLoad, make_jobs, plan_pool, pool
from benchmark.policies.pool_commands import PoolCommands

GB = 10**9
SHAPES = {"small": GB, "middle": 15 * GB, "large": 26 * GB}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and profiles are made once."""
    return tmp_path_factory.mktemp("gpu-suite")


def run(work: Path, *stages: str, kv_gib: float = 0.25, more: tuple[str, ...] = ()) -> tuple[int, dict[str, Any]]:
    """The exit code and what was written, of stages on the CPU with a tiny model."""
    out = work / "gpu.json"
    arguments = ["--device", "cpu", "--models", "tiny", "--work", str(work), "--out", str(out), "--patience", "20"]
    chosen = [word for stage in stages for word in ("--stage", stage)]
    code = gpu_suite.main([*arguments, "--kv-gib", str(kv_gib), *chosen, *more])
    return code, json.loads(out.read_text())


def test_without_a_gpu_it_says_so_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_suite, "_device", lambda kind: "there is no NVIDIA driver here")
    out = tmp_path / "gpu.json"
    assert gpu_suite.main(["--out", str(out)]) == gpu_suite.NO_GPU
    assert "needs a GPU: there is no NVIDIA driver here. Nothing was measured." in capsys.readouterr().out
    assert not out.exists()


def test_all_stages_together_take_less_than_ten_minutes() -> None:
    assert sum(gpu_suite.LIMITS_S.values()) < 600


def test_a_stage_that_fails_keeps_the_results_of_the_others(work: Path) -> None:
    code, results = run(work, "kv", "models", kv_gib=0.03)
    stages = results["stages"]
    assert code == 1
    assert list(stages) == ["kv", "models"]
    assert "hold no slab of 67108864: raise --kv-gib" in stages["kv"]["failed"]
    assert stages["models"]["failed"] is None
    assert stages["models"]["records"][0]["model"] == "tiny"


def test_a_stage_that_takes_too_long_is_ended(work: Path) -> None:
    code, results = run(work, "limits", more=("--patience", "0.01"))
    assert code == 1
    assert results["stages"]["limits"]["failed"] == "took longer than 0.25 s"


def test_a_shape_that_is_not_known_is_a_clear_error(work: Path) -> None:
    code, results = run(work, "models", more=("--models", "huge"))
    assert code == 1
    assert "there is no shape 'huge'" in results["stages"]["models"]["failed"]


@pytest.mark.slow
def test_tokens_are_equal_and_switches_and_overlap_are_measured(work: Path) -> None:
    code, results = run(work, "tokens", "switch", "overlap")
    assert code == 0, results
    stages = {name: stage["records"] for name, stage in results["stages"].items()}
    assert [record["equal"] for record in stages["tokens"]] == [True, True]
    phases = {record["what"]: record for record in stages["switch"]}
    assert {"from disk", "from host cache", "prefetched", "resident", "evict"} <= phases.keys()
    assert phases["from host cache"]["of_limit"] > 0
    assert [record["what"] for record in stages["overlap"]] == ["decode alone", "while tiny, again comes in"]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the pool needs Ray")
def test_a_pool_is_measured_with_the_simulators_prediction_beside_it(work: Path) -> None:
    code, results = run(work, "profile", "pool", more=("--pool-models", "4", "--pool-seconds", "6"))
    assert code == 0, results
    (profile,) = results["stages"]["profile"]["records"]
    assert profile["decode_8x512_s"] > 0
    assert profile["weights_in_gb_per_s"] > 0
    mix, measured, simulated = results["stages"]["pool"]["records"]
    assert mix["side"] == "4 x tiny"
    assert (measured["side"], simulated["side"]) == ("measured", "simulated")
    for side in (measured, simulated):
        assert side["requests"] == mix["requests"] > 0
        assert side["failed"] == 0
        assert side["turns"] >= side["switches"] > 0
        assert side["loads"] > 0, "half of the models are resident"
        assert side["ttft_p50_s"] > 0


def test_without_ray_the_pool_is_left_out_visibly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(gpu_pool.importlib.util, "find_spec", lambda name: None if name == "ray" else found(name))
    (record,) = pool("cpu", {}, tmp_path, PoolLoad(4, 1.0))
    assert record == {"side": "not measured: ray cannot be imported here"}


def test_the_pool_mixes_shapes_as_the_hosts_memory_allows() -> None:
    target = copying_target(1, 1 << 30)
    roomy = plan_pool(target, SHAPES, 6, room_bytes=1000 * GB)
    assert list(roomy.shapes.values()) == ["small", "middle", "large"] * 2
    assert roomy.resident_models == 3
    tight = plan_pool(target, SHAPES, 6, room_bytes=120 * GB)
    assert list(tight.shapes.values()) == ["small", "middle", "large", "small", "small", "small"]
    assert tight.weight_cache_bytes >= 45 * GB
    assert 3 / 4 * tight.device_bytes >= (26 + 15 + 1) * GB, "half of them, and a quarter for KV"
    tiny = plan_pool(target, SHAPES, 6, room_bytes=GB)
    assert set(tiny.shapes.values()) == {"small"}


def test_the_load_has_rates_from_the_least_to_the_most() -> None:
    jobs = make_jobs(["a", "b", "c"], 600.0, LengthLimits(2048, 256), 4096)
    rates = [sum(job.model == name for job in jobs) / 600.0 for name in "abc"]
    assert rates == pytest.approx([0.1, 0.3, 0.5], rel=0.25)
    assert [job.time_s for job in jobs] == sorted(job.time_s for job in jobs)
    assert max(job.new_tokens for job in jobs) <= 256
    assert jobs == make_jobs(["a", "b", "c"], 600.0, LengthLimits(2048, 256), 4096)


def test_switches_and_loads_are_counted_from_commands() -> None:
    def entry(now_s: float, *commands: Any) -> LogEntry:
        return LogEntry(now_s, RequestCancelled("r"), commands)

    def turn(turn_id: int, model: str) -> StartTurn:
        return StartTurn("i", turn_id, model, (), ("r",), 1.0, False)

    log = [
        entry(0.0, turn(0, "a")),
        entry(1.0, turn(1, "a"), LoadWeights("i", "b")),
        entry(2.0, turn(2, "b")),
        entry(3.0, EvictWeights("i", "a"), turn(3, "a")),
    ]
    assert PoolCommands.of(log, 0.0) == PoolCommands(turns=4, switches=3, loads=3)
    assert PoolCommands.of(log, 2.0) == PoolCommands(turns=2, switches=2, loads=1)
