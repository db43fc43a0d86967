"""The figures and the simulator understand each other: command lines, file names, what is in the files."""

from __future__ import annotations

from pathlib import Path

import pytest

from aegaeon.metrics import Metric
from aegaeon.run_header import Load
from plots.curves.outcome import Outcome
from plots.read.record_file import read_record_file
from plots.read.records import read_records
from sim import simulate
from sim.panels import A10_PANELS, PANELS, TP4_PANELS, Panel
from sim.study.options import make_plans, make_setting, parser

EVERY_PANEL = [*PANELS.values(), *A10_PANELS, *TP4_PANELS]


@pytest.mark.parametrize("panel", EVERY_PANEL, ids=lambda panel: f"{panel.spec}-{panel.slo.ttft_s}-{panel.slo.tpot_s}")
def test_a_panels_records_are_found_under_the_name_that_the_simulator_gives_them(panel: Panel, tmp_path: Path) -> None:
    options = parser().parse_args([*panel.simulate_arguments, "--policy", "aegaeon"])
    slo = make_setting(options, {}).slo
    (plan,) = make_plans(options, slo)
    keys = ", ".join(f'"{point.key}": {{}}' for point in plan.points)
    (tmp_path / plan.file_name).write_text(f"{{{keys}}}", encoding="utf-8")
    outcomes = read_record_file(tmp_path / plan.file_name)
    assert tuple(panel.x_of(outcome.load) for outcome in outcomes) == panel.xs
    assert {outcome.slo for outcome in outcomes} == {slo} == {panel.slo}


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    folder = tmp_path_factory.mktemp("records")
    load = ["--num-models", "20", "30", "--arrival-rate", "0.5", "--duration", "10", "--slo", "0.3"]
    pool = ["--policy", "aegaeon", "--devices", "4xh100", "--workers", "1", "--out", str(folder)]
    assert simulate.main([*load, *pool]) == 0
    return read_records([folder])


def test_what_a_simulation_says_of_itself_does_not_depend_on_names(tmp_path: Path) -> None:
    load = ["--num-models", "2", "--arrival-rate", "0.5", "--duration", "10", "--inlen-scale", "2.0"]
    assert (
        simulate.main([*load, "--policy", "slack", "--devices", "2xa10", "--mix", "yi-1.5-6b", "--out", str(tmp_path)])
        == 0
    )
    (file,) = tmp_path.glob("sim-*0.json")
    file.rename(tmp_path / "mine.json")
    file.with_name(f"{file.stem}.summary.json").rename(tmp_path / "mine.summary.json")
    (outcome,) = read_records([tmp_path])
    assert (outcome.policy, outcome.load, str(outcome.source)) == ("slack", Load(2, 0.5, 2.0), "simulated, 2 x A10")


def test_metrics_of_the_token_times_are_those_of_the_summary(simulated: list[Outcome]) -> None:
    assert [outcome.load.models for outcome in simulated] == [20, 30]
    for outcome in simulated:
        assert set(outcome.scores) == set(Metric)
        assert outcome.scores[Metric.SLO_ATTAINMENT] < 1.0  # or the comparison would say little
        for metric, score in outcome.scores.items():
            assert outcome.gaps().mean(metric, outcome.slo) == pytest.approx(score, abs=2e-3)


def test_a_simulation_tells_all_that_figures_show(simulated: list[Outcome]) -> None:
    for outcome in simulated:
        detail = outcome.detail()
        assert str(outcome.source) == "simulated, 4 x H100"
        assert detail.parts is not None
        assert detail.kv_sync_s is not None
        assert detail.parts.decode_s > 0
        assert len(detail.switch_s) == 3
        assert all(0 <= use.used_bytes <= use.assigned_bytes for use in detail.slabs.values())
