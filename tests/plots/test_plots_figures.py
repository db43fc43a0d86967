"""The scripts that draw the figures, on small record files in the simulator's and the benchmark's formats."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

import matplotlib.image
import numpy as np
import pytest

from aegaeon.core.slo import Slo
from aegaeon.metrics import Metric
from aegaeon.run_header import Load, Origin, RunHeader, SystemRun
from plots import (
    figures,
    plot_a10,
    plot_autoscale_cdf,
    plot_breakdown,
    plot_e2e,
    plot_frag,
    plot_kvcache_cdf,
    plot_tp4,
    results,
)
from plots.draw.style import SYSTEMS, system_look
from plots.options import run
from plots.read.records import curves_of, read_records
from sim.panels import A10_PANELS, FAR_PANELS, PANELS, TP4_PANELS

ROOT = Path(__file__).parents[2]
DEVICE = "16 x h100"
ON_TIME_MS = [500.0, *[50.0] * 9]
LATE_MS = [60_000.0, *[50.0] * 9]
DROPPED = [-1]


def requests_ms(attainment: float, requests: int = 20) -> dict[str, Sequence[float]]:
    """Requests of which a share is served on time; the rest is late, the last one of it dropped."""
    good = round(attainment * requests)
    served = [ON_TIME_MS] * good + [LATE_MS] * (requests - good)
    if good < requests:
        served[-1] = DROPPED
    return {f"request-{index}": gaps for index, gaps in enumerate(served)}


def write_simulation(path: Path, shares: Mapping[tuple[float, str], float]) -> None:
    """The artifact's format, word for word, and nothing else."""
    content = {f"({x:g}, {policy})": requests_ms(share) for (x, policy), share in shares.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_run(path: Path, attainment: float = 1.0, policy: str = "", name: str = "request-{}") -> None:
    """The benchmark's format; without a policy the artifact's."""
    entries = {}
    for index, gaps_ms in enumerate(requests_ms(attainment).values()):
        gaps_s = [gap / 1e3 for gap in gaps_ms] if gaps_ms != DROPPED else [-1.0]
        parts = (0.1, 0.2, 0.3, 0.4, 0.05, 0.01) if gaps_ms != DROPPED else (None,) * 6
        names = ("prefill_wait_time", "prefill_time", "decode_wait_time", "decode_time")
        fields = dict(zip((*names, "control_overhead", "block_overhead"), parts, strict=True))
        stated = {"policy": policy} if policy else {}
        entries[name.format(index)] = {**stated, "ttft": gaps_s[0], "qos": 1.0, "per_token": gaps_s, **fields}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(entries), encoding="utf-8")


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """Two systems over all of panel 0.1: one crosses 90 % at 66 models, the other at 30."""
    folder = tmp_path / "json"
    xs = PANELS["0.1"].xs
    shares = {(x, "aegaeon"): 1.0 if x <= 64 else 0.8 for x in xs} | {(x, "sllm"): 1.0 if x <= 28 else 0.8 for x in xs}
    write_simulation(folder / "sim-model16-80-rate0.1-scale-1.0-1.0.json", shares)
    return folder


def coloured_pixels(path: Path) -> int:
    image = matplotlib.image.imread(path)[:, :, :3]
    return int((np.ptp(image, axis=2) > 0.3).sum())


def test_a_panel_becomes_a_picture_and_a_pdf(records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plot_e2e.main(["--spec", "0.1", "--json", str(records), "--out", str(tmp_path / "new")]) == 0
    assert [line.rpartition("/")[2] for line in capsys.readouterr().out.split()] == ["0.1.png", "0.1.pdf"]
    assert coloured_pixels(tmp_path / "new" / "0.1.png") > 5000
    assert (tmp_path / "new" / "0.1.pdf").read_bytes().startswith(b"%PDF")


def test_the_same_records_make_the_same_bytes(records: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        plot_e2e.main(["--spec", "0.1", "--json", str(records), "--out", str(tmp_path / name)])
    for file in ("0.1.png", "0.1.pdf"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_the_command_of_the_artifact_works_in_its_folder(records: Path, tmp_path: Path) -> None:
    command = [sys.executable, "plot_e2e.py", "--spec", "0.1", "--json", str(records), "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT / "plots", capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "0.1.pdf").exists()


@pytest.mark.parametrize(
    ("spec", "command"),
    [
        ("40", "python3 -m sim.simulate --num-models 40 --arrival-rate 0.05 0.1 0.15"),
        ("0.5-ox2", "--arrival-rate 0.5 --outlen-scale 2.0"),
    ],
)
def test_without_records_the_error_says_how_to_make_them(
    spec: str, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plot_e2e.main(["--spec", spec, "--json", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert command in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_bound_is_drawn_where_records_have_it_and_else_the_error_says_how(
    records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--spec", "0.1", "--json", str(records), "--out", str(tmp_path / "new"), "--bound"]
    assert plot_e2e.main(arguments) == 2
    assert "python3 -m sim.simulate --num-models 16 20" in (error := capsys.readouterr().err)
    assert "--bound" in error
    points = {f"({x}, aegaeon)": {"bound_load": x / 50, "slo_attainment": 1.0} for x in PANELS["0.1"].xs}
    summary = records / "sim-model16-80-rate0.1-scale-1.0-1.0.summary.json"
    summary.write_text(json.dumps({"device": DEVICE, "points": points}), encoding="utf-8")
    assert plot_e2e.main(arguments) == 0
    assert (tmp_path / "new" / "0.1.png").is_file()


def test_a_missing_point_is_said_and_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shares = {(x, "aegaeon"): 1.0 for x in PANELS["0.1"].xs if x not in (20, 44)}
    write_simulation(tmp_path / "sim-model16-80-rate0.1-scale-1.0-1.0.json", shares)
    assert plot_e2e.main(["--spec", "0.1", "--json", str(tmp_path), "--out", str(tmp_path)]) == 0
    assert "no record at 20, 44 models; skipped" in capsys.readouterr().err


def test_stricter_targets_score_records_that_were_served_for_the_usual_ones(
    records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plot_e2e.main(["--spec", "slo0.3", "--json", str(records), "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().err
    assert "served for TTFT 10 s and TPOT 0.1 s, scored by TTFT 3 s and TPOT 0.03 s" in said


@pytest.mark.parametrize("content", ["{", "[]", '{"(16, aegaeon)": {"r": [1, -5]}}', '{"(16, aegaeon)": {"r": "no"}}'])
def test_a_file_that_holds_no_records_is_named(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "sim-model16-rate0.1-scale-1.0-1.0.json"
    file.write_text(content, encoding="utf-8")
    assert plot_e2e.main(["--spec", "0.1", "--json", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert str(file) in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--spec", "0.2"], ["--spec", "0.1", "--slo", "soon"], ["--spec", "0.1", "--slo", "-1"]]
)
def test_options_that_make_no_sense_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        plot_e2e.main(arguments)
    assert arguments[-1] in capsys.readouterr().err


def test_a_real_run_is_shown_beside_simulated_ones(records: Path, tmp_path: Path) -> None:
    write_run(records / "run-16-0.1-1.0-1.0-ttft10.0-tpot0.1.json")
    outcomes = read_records([records], measured_on="2-core CPU")
    found = curves_of(PANELS["0.1"], outcomes, Metric.SLO_ATTAINMENT, None, lambda _: None)
    labels = [(policy, str(curve.source), len(curve.points)) for policy, curve in found]
    assert ("aegaeon", "measured, 2-core CPU", 1) in labels
    assert ("aegaeon", "simulated, device not stated", 17) in labels


def test_a_real_run_is_of_the_policy_that_its_records_say(tmp_path: Path) -> None:
    write_run(tmp_path / "run-16-0.1-1.0-1.0-ttft10.0-tpot0.1.json", policy="slack")
    (outcome,) = read_records([tmp_path])
    assert outcome.policy == "slack"


def test_records_of_the_benchmark_that_do_not_say_their_policy_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of earlier versions; the artifact's, whose requests are called otherwise, are Aegaeon's."""
    write_run(tmp_path / "run-16-0.1-1.0-1.0-ttft10.0-tpot0.1.json", name="synth_model_00-{:05d}")
    assert plot_e2e.main(["--spec", "0.1", "--json", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "does not say which policy ran" in capsys.readouterr().err


def test_real_and_simulated_records_of_the_same_requests_score_alike(tmp_path: Path) -> None:
    write_run(tmp_path / "run-16-0.1-1.0-1.0-ttft10.0-tpot0.1.json", attainment=0.6)
    write_simulation(tmp_path / "sim-model16-20-rate0.1-scale-1.0-1.0.json", {(16, "aegaeon"): 0.6})
    real, simulated = read_records([tmp_path])
    for metric in Metric:
        for slo in (Slo(), Slo(0.1, 0.01)):
            assert real.score(metric, slo) == simulated.score(metric, slo)
    assert real.score(Metric.SLO_ATTAINMENT, Slo()) == 0.6


def test_crossings_of_records_are_where_they_fall(records: Path) -> None:
    found = curves_of(PANELS["0.1"], read_records([records]), Metric.SLO_ATTAINMENT, None, lambda _: None)
    assert {policy: curve.crossing.x for policy, curve in found} == {
        "aegaeon": pytest.approx(66.0),
        "sllm": pytest.approx(30.0),
    }


def test_keys_may_be_written_with_quotes(tmp_path: Path) -> None:
    content = {"(16, 'sllm+')": requests_ms(1.0)}
    (tmp_path / "sim-model16-20-rate0.1-scale-1.0-1.0.json").write_text(json.dumps(content), encoding="utf-8")
    (outcome,) = read_records([tmp_path])
    assert (outcome.policy, outcome.load) == ("sllm+", Load(16, 0.1))


@pytest.mark.parametrize("key", ["(16, <sim.scheduler.SeLLMPolicy object at 0x7f3c>)", "(16, 'SeLLMPolicy')"])
def test_the_artifacts_keys_are_drawn_by_their_names(tmp_path: Path, key: str) -> None:
    content = {key: requests_ms(1.0), key.replace("SeLLM", "SeLLMPlus"): requests_ms(0.5)}
    (tmp_path / "sim-model16-80-rate0.1-scale-1.0-1.0.json").write_text(json.dumps(content), encoding="utf-8")
    found = curves_of(PANELS["0.1"], read_records([tmp_path]), Metric.QOS, None, lambda _: None)
    assert [(policy, curve.label) for policy, curve in found] == [
        ("sllm", "ServerlessLLM"),
        ("sllm+", "ServerlessLLM+"),
    ]


@pytest.mark.parametrize("rates", ["0.05-0.7", "0.05-0.70"])
def test_one_number_of_models_is_written_once_in_a_name(tmp_path: Path, rates: str) -> None:
    shares = {(rate, "sllm"): 1.0 for rate in PANELS["40"].xs}
    write_simulation(tmp_path / f"sim-model40-rate{rates}-scale-1.0-1.0.json", shares)
    ((_, curve),) = curves_of(PANELS["40"], read_records([tmp_path]), Metric.QOS, None, lambda _: None)
    assert [x for x, _ in curve.points] == list(PANELS["40"].xs)


def test_rates_in_names_of_the_artifacts_runs_are_what_they_mean(tmp_path: Path) -> None:
    for rate in (3 * 0.05, 14 * 0.05):  # 0.15000000000000002 and 0.7000000000000001
        write_run(tmp_path / f"run-40-{rate}-1.0-1.0-ttft10.0-tpot0.1.json")
    ((_, curve),) = curves_of(PANELS["40"], read_records([tmp_path]), Metric.QOS, None, lambda _: None)
    assert [x for x, _ in curve.points] == [0.15, 0.7]


def test_a_sweep_of_rates_is_told_from_a_sweep_of_models(tmp_path: Path) -> None:
    write_simulation(tmp_path / "sim-model40-rate0.05-scale-1.0-1.0.json", {(0.05, "sllm"): 1.0, (0.1, "sllm"): 1.0})
    assert [outcome.load for outcome in read_records([tmp_path])] == [Load(40, 0.05), Load(40, 0.1)]


@pytest.mark.parametrize("script", [plot_breakdown, plot_kvcache_cdf])
def test_inner_workings_of_real_runs_are_drawn(script: ModuleType, tmp_path: Path) -> None:
    write_run(tmp_path / "run-16-0.1-1.0-1.0-ttft10.0-tpot0.1.json", attainment=0.5)
    assert script.main(["--json", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    (picture,) = (tmp_path / "out").glob("*.png")
    assert coloured_pixels(picture) > 1000


def summary_of(**points: object) -> dict[str, object]:
    return {"device": DEVICE, "compat": None, "no_placement": {}, "points": points}


def write_summary(records: Path, summary: Mapping[str, object]) -> None:
    """Beside the simulation that is there."""
    (file,) = records.glob("sim-*.json")
    file.with_name(f"{file.stem}.summary.json").write_text(json.dumps(summary), encoding="utf-8")


QUANTILES = {"0.0": 0.0, "0.5": 0.1, "0.99": 0.5, "1.0": 1.0}
PARTS = ("prefill_wait_s", "prefill_s", "decode_wait_s", "decode_s", "control_s", "block_s")
FULL_POINT = {
    "slo_attainment": 0.75,
    "qos": 0.85,
    "parts": dict.fromkeys(PARTS, 1.0),
    "kv_sync_s": QUANTILES,
    "switch_s": {"qwen2.5-7b": QUANTILES, "llama-2-13b": QUANTILES},
    "fragmentation": {"28x(2,16,4,128)": {"assigned_bytes": 4 << 30, "used_bytes": 3 << 30}},
}


def test_a_summary_says_the_device_and_saves_reading_the_tokens(records: Path) -> None:
    write_summary(records, summary_of(**{"(80, aegaeon)": FULL_POINT}))
    (file,) = [file for file in records.glob("sim-*.json") if "summary" not in file.name]
    file.write_text("not read", encoding="utf-8")
    (outcome,) = read_records([records])
    assert str(outcome.source) == "simulated, 16 x H100"
    assert [outcome.score(metric, Slo()) for metric in (Metric.SLO_ATTAINMENT, Metric.QOS)] == [0.75, 0.85]
    assert outcome.detail().slabs["28x(2,16,4,128)"].fragmented_share == 0.25


def test_a_system_that_takes_the_devices_it_needs_says_how_many(records: Path) -> None:
    points = {f"({x}, dedicated)": {**FULL_POINT, "devices": x} for x in (16, 80)}
    points["(80, aegaeon)"] = {**FULL_POINT, "devices": 16}
    write_summary(records, summary_of(**points))
    found = {outcome.policy: outcome.source.device for outcome in read_records([records])}
    assert found == {"dedicated": "16 to 80 x H100", "aegaeon": "16 x H100"}


def test_constants_of_the_artifact_are_said(records: Path) -> None:
    write_summary(records, {**summary_of(**{"(80, aegaeon)": FULL_POINT}), "compat": "artifact"})
    assert str(read_records([records])[0].source) == "simulated, 16 x H100, constants of the artifact"


def test_a_system_without_placement_ends_there(records: Path) -> None:
    points = {f"({x}, muxserve)": {"slo_attainment": 1.0, "qos": 1.0} for x in (16, 20)}
    write_summary(records, {**summary_of(**points), "no_placement": {"(24, muxserve)": "too many models"}})
    ((policy, curve),) = curves_of(PANELS["0.1"], read_records([records]), Metric.QOS, None, lambda _: None)
    assert (policy, [x for x, _ in curve.points], curve.end) == ("muxserve", [16, 20], "no placement")


@pytest.mark.parametrize("script", [plot_breakdown, plot_kvcache_cdf, plot_autoscale_cdf, plot_frag])
def test_inner_workings_of_simulations_are_drawn(script: ModuleType, records: Path, tmp_path: Path) -> None:
    write_summary(records, summary_of(**{"(80, aegaeon)": FULL_POINT}))
    assert script.main(["--json", str(records), "--out", str(tmp_path / "out")]) == 0
    (picture,) = (tmp_path / "out").glob("*.png")
    assert coloured_pixels(picture) > 1000


@pytest.mark.parametrize("script", [plot_breakdown, plot_kvcache_cdf, plot_autoscale_cdf, plot_frag])
def test_without_a_summary_inner_workings_are_not_known(
    script: ModuleType, records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main(["--json", str(records), "--out", str(tmp_path / "out")]) == 2
    assert "error: " in capsys.readouterr().err


def test_a_load_without_records_lists_those_there_are(
    records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--num-models", "17", "--json", str(records), "--out", str(tmp_path)]
    assert plot_frag.main(arguments) == 2
    assert "at 17 x 0.1/s" in (said := capsys.readouterr().err)
    assert "16 x 0.1/s, 20 x 0.1/s" in said


@pytest.mark.parametrize(
    ("script", "name", "shares"),
    [
        (plot_a10, "sim-model4-10-rate0.1-scale-1.0-1.0-ttft5.0-tpot0.05.json", {(4, "aegaeon"): 1.0}),
        (plot_tp4, "sim-model4-rate0.1-0.2-scale-1.0-1.0-ttft10.0-tpot0.2.json", {(0.1, "aegaeon"): 1.0}),
    ],
)
def test_a_curve_per_slo(
    script: ModuleType,
    name: str,
    shares: Mapping[tuple[float, str], float],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_simulation(tmp_path / name, shares)
    assert script.main(["--json", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().err.count("make them with: python3 -m sim.simulate") == 2  # for the other two SLOs
    assert len(list((tmp_path / "out").iterdir())) == 2


@pytest.mark.parametrize(
    ("script", "names", "label"),
    [
        (plot_a10, [f"{models}-0.1.json" for models in range(4, 11)], "number of models"),
        (plot_tp4, [f"4-0.{n}.json" for n in range(1, 7)], "arrival rate of all models (requests/s)"),
    ],
)
def test_the_results_that_the_artifact_comes_with_give_a_curve_per_slo(
    script: ModuleType, names: Sequence[str], label: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in names:
        write_run(tmp_path / name)
    assert script.main(["--json", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().err == "", "nothing is missing"
    panels = TP4_PANELS if script is plot_tp4 else A10_PANELS
    assert {panel.x_label for panel in panels} == {label}


def test_the_rate_of_all_models_is_shown_for_tensor_parallel_ones() -> None:
    assert TP4_PANELS[0].xs == (0.4, 0.8, 1.2, 1.6, 2.0, 2.4)
    assert TP4_PANELS[0].x_of(Load(4, 0.3)) == 1.2


def test_real_runs_are_shown_whatever_their_policy(tmp_path: Path) -> None:
    """After the artifact's commands, which run this project's default policy, its figures show those runs."""
    write_run(tmp_path / "run-16-0.1-1.0-1.0-ttft10.0-tpot0.1.json", policy="slack")
    assert plot_breakdown.main(["--json", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "latency_breakdown.png").is_file()


def test_every_system_has_a_look_of_its_own() -> None:
    looks = {(look.colour, look.marker, look.dash) for look in map(system_look, SYSTEMS)}
    assert len(looks) == len(SYSTEMS)
    assert next(iter(SYSTEMS)) == "slack"
    assert system_look("slack").bold


def test_the_far_sweeps_go_beyond_what_slack_serves() -> None:
    assert {spec: max(FAR_PANELS[spec].xs) > ours for spec, ours in (("0.1", 220), ("0.5", 165))} == {
        "0.1": True,
        "0.5": True,
    }
    assert FAR_PANELS.keys() <= PANELS.keys()


def test_a_sweep_with_gaps_does_not_become_a_figure_of_the_project(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for spec, panel in PANELS.items():
        arguments = panel.simulate_arguments
        assert arguments, spec
        shares = {(x, policy): 1.0 for x in panel.xs[:-1] for policy in figures.PAPER.policies}
        scale = f"{panel.inlen_scale}-{panel.outlen_scale}"
        rates = panel.rates[0] if len(panel.rates) == 1 else f"{panel.rates[0]}-{panel.rates[-1]}"
        models = "-".join(dict.fromkeys(f"{end}" for end in (panel.models[0], panel.models[-1])))
        slo = "" if panel.slo == Slo() else f"-ttft{panel.slo.ttft_s}-tpot{panel.slo.tpot_s}"
        write_simulation(tmp_path / "paper" / f"sim-model{models}-rate{rates}-scale-{scale}{slo}.json", shares)
    assert figures.main(["--keep", "--json", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "aegaeon at 80, 0.1 requests/s per model" in said
    assert not (tmp_path / "out").exists()


def test_without_out_no_figure_of_the_project_is_touched_and_the_pdf_lies_where_the_artifact_has_it(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plots.options.PLOTS", tmp_path)
    assert plot_e2e.main(["--spec", "0.1", "--json", str(records)]) == 0
    written = [str(file.relative_to(tmp_path)) for file in sorted(tmp_path.rglob("0.1.*"))]
    assert written == ["0.1.pdf", "out/0.1.pdf", "out/0.1.png"]


def test_figures_without_records_say_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "json").mkdir()
    arguments = ["--keep", "--json", str(tmp_path / "json"), "--out", str(tmp_path), "--claims", str(tmp_path / "c.md")]
    assert figures.main(arguments) == 2
    assert "no records for Figure 11(a)" in capsys.readouterr().err
    assert not (tmp_path / "c.md").exists()


def test_a_sweep_that_fails_is_told_in_the_simulators_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = ["--json", str(tmp_path), "--out", str(tmp_path), "--claims", str(tmp_path / "c.md")]
    assert figures.main(["--policy", "aegeon", *places]) == 2
    said = capsys.readouterr().err
    assert "'aegeon'" in said
    assert "Traceback" not in said


def test_ctrl_c_ends_without_a_traceback() -> None:
    def interrupted(_: argparse.Namespace) -> list[Path]:
        raise KeyboardInterrupt

    assert run(interrupted, argparse.Namespace()) == 130


# -- headers


def test_a_header_says_what_is_in_a_file_whatever_its_name(records: Path) -> None:
    (file,) = records.iterdir()
    run = SystemRun("slack", Load(40, 0.05))
    header = RunHeader(Origin.SIMULATED, "4 x a10", Slo(5.0, 0.2), {"(16, aegaeon)": run}, "1.0", "abc")
    moved = file.rename(records / "anything.json")
    moved.with_name("anything.summary.json").write_text(json.dumps(header.plain()), encoding="utf-8")
    (outcome,) = read_records([records])
    assert (outcome.policy, outcome.load, outcome.slo) == ("slack", Load(40, 0.05), Slo(5.0, 0.2))
    assert str(outcome.source) == "simulated, 4 x A10"
    assert outcome.score(Metric.SLO_ATTAINMENT, Slo()) == 1.0


def test_a_header_is_read_back_as_it_was_written() -> None:
    runs = {"a": SystemRun(None, Load(2, 0.1, 2.0, 1.0)), "b": SystemRun("slack", None)}
    header = RunHeader.here(Origin.MEASURED, None, Slo(1.0, 0.5), runs)
    assert RunHeader.read(json.loads(json.dumps(header.plain()))) == header
    assert RunHeader.read({"device": "16 x h100"}) is None


def test_a_header_that_makes_no_sense_is_named(
    records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_summary(records, {"format": "aegaeon-records-1", "world": "dreamt"})
    assert plot_e2e.main(["--spec", "0.1", "--json", str(records), "--out", str(tmp_path)]) == 2
    assert "has no usable header" in capsys.readouterr().err


# -- benchmarks of this project


@pytest.mark.parametrize("name", ["fidelity", "loader", "policies", "runtime_policies"])
def test_the_results_of_the_project_are_drawn(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / f"{name}.json"
    copy.write_bytes((ROOT / "benchmark" / "results" / copy.name).read_bytes())
    assert results.main([str(copy)]) == 0
    assert capsys.readouterr().out.strip() == str(copy.with_suffix(".png"))
    assert coloured_pixels(copy.with_suffix(".png")) > 5000


@pytest.mark.parametrize("content", ["{}", '{"benchmark": "weather"}', '{"benchmark": "fidelity"}'])
def test_results_that_have_no_figure_are_told(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.json").write_text(content, encoding="utf-8")
    assert results.main([str(tmp_path / "x.json")]) == 2
    assert "x.json" in capsys.readouterr().err
