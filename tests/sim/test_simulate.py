"""``python3 -m sim.simulate``: files, tables, determinism, complaints."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from aegaeon.core.slo import Slo
from aegaeon.workload import QuantileTable, SyntheticSpec, read_trace, synthesize
from sim.simulate import main
from sim.study.options import make_plans, parser

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "traces" / "aegaeon_synth_scale1.0-1.0.tar.gz"
SMALL = ["--devices", "4xh100", "--duration", "20", "--policy", "aegaeon"]
HEADER = "Request Time,Model Name,Input Length,Output Length\n"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No workload files, no environment of the one who runs the tests."""
    monkeypatch.chdir(tmp_path)
    for name in ("AEGAEON_TTFT_SLO", "AEGAEON_TPOT_SLO", "AEGAEON_SHAREGPT_PATH"):
        monkeypatch.delenv(name, raising=False)


def load(path: Path) -> dict[str, dict[str, list[float]]]:
    return json.loads(path.read_text())  # type: ignore[no-any-return]


def test_a_sweep_writes_the_artifacts_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--num-models", "4", "6", "--arrival-rate", "0.2", *SMALL]) == 0
    points = load(tmp_path / "plots/json/sim-model4-6-rate0.2-scale-1.0-1.0.json")
    assert list(points) == ["(4, aegaeon)", "(6, aegaeon)"]
    for requests in points.values():
        assert requests
        assert all(len(gaps) >= 16 and min(gaps) >= 0 for gaps in requests.values())
    told = capsys.readouterr().out
    assert "slo_attainment" in told
    assert "sim-model4-6-rate0.2-scale-1.0-1.0.json" in told


def test_the_summary_says_what_the_figures_need(tmp_path: Path) -> None:
    assert main(["--num-models", "4", "--arrival-rate", "0.2", "--out", "out", *SMALL]) == 0
    summary = json.loads((tmp_path / "out/sim-model4-rate0.2-scale-1.0-1.0.summary.json").read_text())
    assert summary["device"] == "4 x h100"
    assert summary["slo"] == {"ttft_s": 10.0, "tpot_s": 0.1}
    (point,) = summary["points"].values()
    assert 0 < point["slo_attainment"] <= 1
    assert point["requests"] > 0
    assert set(point["parts"]) == {"prefill_wait_s", "prefill_s", "decode_wait_s", "decode_s", "control_s", "block_s"}
    assert point["switch_s"].keys() <= {"qwen2.5-7b", "yi-1.5-9b", "llama-2-13b"}
    assert all(0 <= use["used_bytes"] <= use["assigned_bytes"] for use in point["fragmentation"].values())
    assert "1.0" in point["kv_sync_s"]


def test_the_bound_is_computed_where_it_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = ["--num-models", "2", "40", "--arrival-rate", "0.5", "--out", "out", *SMALL, "--devices", "1xh100"]
    assert main([*sweep, "--bound"]) == 0
    assert "bound" in capsys.readouterr().out
    summary = json.loads((tmp_path / "out/sim-model2-40-rate0.5-scale-1.0-1.0.summary.json").read_text())
    few, many = (point["bound_load"] for point in summary["points"].values())
    assert 0.0 < few < 1.0 < many, "40 models are more than any policy could serve in time on one device"
    assert main(sweep) == 0
    assert "bound" not in capsys.readouterr().out


def test_rates_are_swept_where_there_is_one_number_of_models(tmp_path: Path) -> None:
    assert main(["--num-models", "4", "--arrival-rate", "0.1", "0.2", "--slo", "0.5", "--out", "out", *SMALL]) == 0
    points = load(tmp_path / "out/sim-model4-rate0.1-0.2-scale-1.0-1.0-ttft5.0-tpot0.05.json")
    assert list(points) == ["(0.1, aegaeon)", "(0.2, aegaeon)"]


def test_equal_seeds_give_equal_bytes_whatever_the_number_of_processes(tmp_path: Path) -> None:
    for out, workers in (("a", "1"), ("b", "2")):
        arguments = ["--num-models", "3", "5", "--arrival-rate", "0.3", "--seed", "7", "--out", out, *SMALL]
        assert main([*arguments, "--workers", workers]) == 0
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(files) == 2
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)


def test_another_seed_gives_another_workload(tmp_path: Path) -> None:
    for out, seed in (("a", "1"), ("b", "2")):
        assert main(["--num-models", "4", "--arrival-rate", "0.2", "--seed", seed, "--out", out, *SMALL]) == 0
    name = "sim-model4-rate0.2-scale-1.0-1.0.json"
    assert (tmp_path / "a" / name).read_bytes() != (tmp_path / "b" / name).read_bytes()


def test_a_trace_is_replayed_and_spread_over_models(tmp_path: Path) -> None:
    rows = "".join(f"2023-11-16 18:15:{index:02d},{100 + index},{20 + index}\n" for index in range(40))
    Path("azure.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows)
    assert main(["--trace", "azure.csv", "--num-models", "5", "--out", "out", *SMALL]) == 0
    (requests,) = load(tmp_path / "out/sim-trace-azure.json").values()
    assert len(requests) == 40
    summary = json.loads((tmp_path / "out/sim-trace-azure.summary.json").read_text())
    assert next(iter(summary["points"].values()))["models"] == 5


def test_a_workload_file_is_used_where_there_is_one(tmp_path: Path) -> None:
    Path("workloads").mkdir()
    Path("workloads/synth-2-0.1-1.0-1.0.csv").write_text(HEADER + "00:00:00.000,a,100,20\n00:00:01.000,b,100,17\n")
    assert main(["--num-models", "2", "--arrival-rate", "0.1", "--out", "out", *SMALL]) == 0
    (requests,) = load(tmp_path / "out/sim-model2-rate0.1-scale-1.0-1.0.json").values()
    assert {name: len(gaps) for name, gaps in requests.items()} == {"0": 20, "1": 17}


def test_a_seed_that_is_given_makes_the_workload_whatever_file_there_is(tmp_path: Path) -> None:
    Path("workloads").mkdir()
    Path("workloads/synth-2-0.1-1.0-1.0.csv").write_text(HEADER + "00:00:00.000,a,100,20\n")
    assert main(["--num-models", "2", "--arrival-rate", "0.1", "--seed", "0", "--out", "out", *SMALL]) == 0
    (point,) = json.loads(Path("out/sim-model2-rate0.1-scale-1.0-1.0.summary.json").read_text())["points"].values()
    assert point["workload"] == "generated, seed 0"


def test_the_example_workload_is_what_its_readme_says() -> None:
    example = Path(__file__).parents[2] / "workloads" / "synth-4-0.1-1.0-1.0.csv"
    assert read_trace(example) == synthesize(SyntheticSpec(4, 0.1), QuantileTable.shipped())


@pytest.mark.parametrize(
    ("link", "compat", "bytes_per_s"),
    [
        ("32", [], 0.8 * 32e9),
        ("31.5", [], 0.8 * 31.5e9),
        ("gen4x16", [], 0.8 * 16 * 1.969e9),
        ("32", ["--compat", "artifact"], 16 * 2**30),
        ("gen4x16", ["--compat", "artifact"], 16 * 2**30),
    ],
)
def test_the_host_link_has_a_name_or_a_rate(tmp_path: Path, link: str, compat: list[str], bytes_per_s: float) -> None:
    sweep = ["--num-models", "1", "--arrival-rate", "0.1", "--out", "out", *SMALL]
    assert main([*sweep, "--h2d", link, *compat]) == 0
    summary = json.loads(Path("out/sim-model1-rate0.1-scale-1.0-1.0.summary.json").read_text())
    assert summary["constants"]["weight_bytes_per_s"] == pytest.approx(bytes_per_s)


@pytest.mark.parametrize("policy", ["slack", "aegaeon", "sllm", "sllm+", "muxserve", "dedicated"])
def test_time_in_which_nothing_happens_costs_nothing(tmp_path: Path, policy: str) -> None:
    """Thirty years between two requests; a step of the simulator for each second of them would take for ever."""
    (tmp_path / "years.csv").write_text(HEADER + "00:00:01.000,m,5,6\n262800:00:00.000,m,5,6\n")
    arguments = ["--trace", "years.csv", "--devices", "2xh100", "--policy", policy, "--bound", "--out", "out"]
    assert main(arguments) == 0
    (requests,) = load(tmp_path / "out/sim-trace-years.json").values()
    assert [len(gaps) for gaps in requests.values()] == [6, 6]


def test_a_trace_since_1970_begins_with_its_first_request(tmp_path: Path) -> None:
    (tmp_path / "epoch.csv").write_text(
        "req_time,prompt_len,output_len,adapter_dir\n1700000000.5,3,5,a\n1700000001.5,3,5,b\n"
    )
    assert main(["--trace", "epoch.csv", "--out", "out", *SMALL]) == 0
    (point,) = json.loads((tmp_path / "out/sim-trace-epoch.summary.json").read_text())["points"].values()
    assert 1 < point["makespan_s"] < 3


def test_a_request_that_is_too_long_is_named_by_its_line_in_json_lines_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "long.jsonl").write_text('{"timestamp": 0, "input_length": 99999, "output_length": 5}\n')
    assert main(["--trace", "long.jsonl", "--out", "out", *SMALL]) == 2
    assert "long.jsonl:1: 99999 prompt" in capsys.readouterr().err


def test_a_chrome_trace_shows_turns_switches_and_kv(tmp_path: Path) -> None:
    arguments = ["--num-models", "4", "--arrival-rate", "0.3", "--chrome-trace", "trace.json", "--out", "out", *SMALL]
    assert main(arguments) == 0
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    spans = [event for event in events if event["ph"] == "X"]
    assert {span["cat"] for span in spans} == {"turns", "switches", "KV in", "KV out"}
    assert all(span["dur"] > 0 and span["ts"] >= 0 for span in spans)
    assert any(event["name"] == "process_name" for event in events)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--policy", "slm"], ["slm", "--policy takes: "]),
        (["--devices", "h1000"], ["h1000", "h100"]),
        (["--devices", "h100", "a100"], ["one kind"]),
        (["--mix", "qwen2.5-8b"], ["qwen2.5-8b", "qwen2.5-7b"]),
        (["--nodes", "99"], ["--nodes"]),
        (["--h2d", "usb"], ["usb", "gen4x16"]),
        (["--host-memory", "4G"], ["--host-memory"]),
        (["--slo", "fast"], ["fast", "ttft=5"]),
        (["--slo", "ttft=0"], ["positive"]),
        (["--slo", "itl=0.1"], ["itl"]),
        (["--swap-overhead", "-1"], ["--swap-overhead"]),
        (["--arrival-rate", "-1"], ["--arrival-rate"]),
        (["--num-models", "0"], ["--num-models"]),
        (["--profile-dir", "nowhere"], ["nowhere"]),
        (["--trace", "nowhere.csv", "--arrival-rate", "0.1"], ["--trace"]),
        (["--max-context", "10"], ["--max-context"]),
        (["--prefill-chunk", "0"], ["--prefill-chunk"]),
        (["--arrival-rate", "0.00001"], ["no request", "--duration"]),
    ],
)
def test_complaints_name_what_is_wrong_and_nothing_is_written(
    arguments: list[str], says: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--num-models", "4", "--arrival-rate", "0.2", *SMALL, *arguments]) == 2
    told = capsys.readouterr().err
    assert told.startswith("sim.simulate: ")
    assert all(text in told for text in says), told
    assert "Traceback" not in told
    assert not (tmp_path / "plots").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Request Time,Model Name,Input Length\n00:00:00.000,a,1\n", ":1: unknown columns"),
        (HEADER + "00:00:00.000,a,10,20\n00:00:-1.000,a,10,20\n", ":3: "),
        (HEADER + "00:00:00.000,a,0,20\n", "no request in it with a prompt and output tokens (1 without are left out)"),
        (HEADER + "00:00:00.000,a,10,20\n00:00:00.000,a,99999,20\n", ":3: 99999 prompt"),
        (HEADER, "no request"),
    ],
)
def test_bad_traces_are_named_with_file_and_line(
    text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("bad.csv").write_text(text)
    assert main(["--trace", "bad.csv", *SMALL]) == 2
    told = capsys.readouterr().err
    assert "bad.csv" in told
    assert says in told
    assert not (tmp_path / "plots").exists()


def test_a_pool_that_cannot_hold_a_model_says_so(tmp_path: Path) -> None:
    arguments = ["--num-models", "4", "--arrival-rate", "0.2", "--devices", "2xa10", "--mix", "llama-2-13b"]
    assert main([*arguments, "--duration", "20", "--policy", "aegaeon", "--out", "out"]) == 0
    summary = json.loads((tmp_path / "out/sim-model4-rate0.2-scale-1.0-1.0.summary.json").read_text())
    assert "cannot hold the largest model" in summary["no_placement"]["(4, aegaeon)"]


@pytest.mark.skipif(not SHARED.exists(), reason="the published workloads are not here")
def test_in_the_artifacts_semantics_qos_is_what_the_artifact_gives(tmp_path: Path) -> None:
    """Three of its nine published points; ``benchmark/simulator.py`` has them all."""
    import tarfile

    published = {"48-0.1": 0.998, "32-0.5": 0.995, "48-0.5": 0.903}
    with tarfile.open(SHARED) as archive:
        for name in published:
            archive.extract(f"synth-{name}-1.0-1.0.csv", "workloads", filter="data")
    for name, qos in published.items():
        models, rate = name.split("-")
        out = f"out-{name}"
        arguments = ["--num-models", models, "--arrival-rate", rate, "--policy", "aegaeon", "--compat", "artifact"]
        assert main([*arguments, "--out", out]) == 0
        summary = json.loads(next((tmp_path / out).glob("*.summary.json")).read_text())
        assert summary["points"][f"({models}, aegaeon)"]["qos"] == pytest.approx(qos, abs=0.02)


@pytest.mark.parametrize(
    ("more", "policies"),
    [
        ([], ["slack", "aegaeon", "sllm", "sllm+", "muxserve"]),
        (["--compat", "artifact"], ["aegaeon", "sllm", "sllm+", "muxserve"]),
        (["--policy", "dedicated"], ["dedicated"]),
    ],
)
def test_which_systems_are_compared_when_none_is_named(more: list[str], policies: list[str]) -> None:
    (plan,) = make_plans(parser().parse_args(["--num-models", "4", "--arrival-rate", "0.1", *more]), Slo())
    assert [point.policy for point in plan.points] == policies


def test_the_environment_sets_the_base_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "AEGAEON_TTFT_SLO", "5")
    monkeypatch.setitem(os.environ, "AEGAEON_TPOT_SLO", "0.2")
    assert main(["--num-models", "2", "--arrival-rate", "0.2", "--slo", "2", "--out", "out", *SMALL]) == 0
    assert (tmp_path / "out/sim-model2-rate0.2-scale-1.0-1.0-ttft10.0-tpot0.4.json").exists()


def test_instances_that_wait_for_each_others_model_do_not_end_turns_for_ever(tmp_path: Path) -> None:
    """At this load each of two instances once had the model that the other one waited for."""
    arguments = ["--num-models", "32", "--arrival-rate", "0.1", "--compat", "artifact", "--policy", "slack"]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    (summary,) = tmp_path.glob("*.summary.json")
    (point,) = json.loads(summary.read_text("utf-8"))["points"].values()
    assert point["requests"] == 330
    assert point["turns"] < 20 * point["requests"]
