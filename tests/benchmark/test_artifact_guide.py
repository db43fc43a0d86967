"""The evaluation guide of the SOSP'25 artifact, as its authors wrote it, with small numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmark.test_benchmark_replay import FakeServer, running_server  # noqa: F401 - a fixture

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "tests" / "artifact_guide.sh"


@pytest.fixture(scope="module")
def root(running_server: FakeServer, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """What the guide calls ``/root``, after all of it."""
    made = tmp_path_factory.mktemp("root")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    server = f"--base-url {running_server.url} --policy aegaeon"
    done = subprocess.run(
        [SCRIPT, REPOSITORY, made, server],
        env={"PATH": path, "HOME": str(made), "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return made


def test_every_figure_lies_where_the_artifact_has_it(root: Path) -> None:
    specs = ["0.1", "0.5", "40", "0.1-ix2", "0.1-ox2", "0.5-ix2", "0.5-ox2", "slo0.5", "slo0.3"]
    others = ["latency_breakdown", "autoscale_cdf", "kvcache_cdf", "frag", "a10", "tp4"]
    assert {file.stem for file in (root / "aegaeon" / "plots").glob("*.pdf")} == {*specs, *others}


def test_results_have_the_artifacts_names(root: Path) -> None:
    names = {file.name for file in (root / "aegaeon" / "plots" / "json").glob("*.json")}
    assert {
        "run-2-0.1-1.0-1.0-ttft10.0-tpot0.1.json",
        "run-2-0.1-2.0-1.0-ttft5.0-tpot0.05.json",
        "sim-model16-20-rate0.1-scale-1.0-1.0.json",
        "sim-model40-rate0.05-0.1-scale-1.0-1.0.json",
        "sim-model16-18-rate0.5-scale-1.0-2.0.json",
    } <= names


def test_the_workloads_that_were_copied_are_what_is_simulated(root: Path) -> None:
    summary = root / "aegaeon" / "plots" / "json" / "sim-model40-rate0.05-0.1-scale-1.0-1.0.summary.json"
    workloads = {point["workload"] for point in json.loads(summary.read_text())["points"].values()}
    assert workloads == {"sim/simdata/synth-40-0.05-1.0-1.0.csv", "sim/simdata/synth-40-0.1-1.0-1.0.csv"}


def test_records_say_which_policy_the_server_ran(root: Path) -> None:
    summary = root / "aegaeon" / "plots" / "json" / "run-2-0.1-1.0-1.0-ttft10.0-tpot0.1.summary.json"
    assert {run["policy"] for run in json.loads(summary.read_text())["runs"].values()} == {"aegaeon"}
