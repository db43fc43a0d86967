"""The commands of the study of paged KV, on small loads."""

from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from sim.study.paged import figures, rate_panels
from sim.study.paged.__main__ import main
from sim.study.paged.experiment import Experiment
from sim.study.paged.figures import PARTS
from sim.study.paged.lengths import DATASETS, read_lengths
from sim.study.paged.models import MODELS
from sim.study.paged.rate_panels import PANELS, RatePanel, limit
from sim.study.paged.sampling import ONE, Sampling
from sim.systems.errors import InputError

COMMAND = ["--system", "astra", "--model", "opt-13b", "--dataset", "alpaca", "--duration", "5"]


def test_the_artifacts_command_writes_the_artifacts_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "table.json"
    command = [*COMMAND, "--sampling", "n4-beam", "--rates", "2.0,4", "--results", str(tmp_path), "--out", str(out)]
    assert main(command) == 0
    place = tmp_path / "alpaca/opt-13b-tp1/n4-beam/cacheflow/block16/req-rate-2.0/seed0/duration-5"
    assert sorted(file.name for file in place.iterdir()) == ["log.txt", "sequences.pkl", "stats.pkl"]
    sequences = pickle.loads((place / "sequences.pkl").read_bytes())
    rows = json.loads(out.read_text())["rows"]
    assert len(sequences) == 4 * rows[0]["requests"]
    latencies = [(one["finish_time"] - one["arrival_time"]) / one["output_len"] for one in sequences]
    assert np.mean(latencies) == pytest.approx(rows[0]["normalized_latency_s"])
    stats = pickle.loads((place / "stats.pkl").read_bytes())
    assert stats["num_gpu_blocks"] == 981
    assert len(stats["timestamps"]) == len(stats["num_physical_blocks"])
    assert max(stats["num_logical_blocks"]) > max(stats["num_physical_blocks"])
    assert "s per token" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--rates", "0"], "are positive"),
        (["--rates", "0.001"], "nobody arrives"),
        (["--rates", "1", "--block-size", "0"], "--block-size 0"),
        (["--rates", "1", "--memory-util", "0.3"], "--memory-util 0.3 leaves no room"),
        (["--rates", "1", "--lengths", "none.csv"], "none.csv: cannot be read"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*COMMAND, *options]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_lengths_have_the_published_means_and_end_before_the_longest_context() -> None:
    for spec in DATASETS.values():
        pairs = spec.draw()
        assert pairs.mean(axis=0) == pytest.approx([spec.prompt_tokens, spec.output_tokens], rel=0.01)
        assert pairs.sum(axis=1).max() < 2048
        assert pairs.min() >= 1


def test_real_lengths_are_read_where_they_are_short_enough(tmp_path: Path) -> None:
    path = tmp_path / "lengths.csv.gz"
    path.write_bytes(gzip.compress(b"num_prefill_tokens,num_decode_tokens\n10,20\n2000,48\n0,3\n7,9\n"))
    assert read_lengths(path).tolist() == [[10, 20], [7, 9]]
    path.write_bytes(gzip.compress(b"a,b\n1,2\n"))
    with pytest.raises(InputError, match="wanted are columns"):
        read_lengths(path)


def test_a_prefix_is_kept_once_and_its_rest_goes_with_every_prompt() -> None:
    with_prefix = Experiment("astra", "llama-13b", "wmt16", 5, 5, prefix_tokens=83)
    without = Experiment("astra", "llama-13b", "wmt16", 5, 5)
    orca = Experiment("orca-oracle", "llama-13b", "wmt16", 5, 5, prefix_tokens=83)
    prompts = [[group.prompt_tokens for group in each.groups()] for each in (without, with_prefix, orca)]
    assert prompts[1] == [prompt + 3 for prompt in prompts[0]]
    assert prompts[2] == [prompt + 83 for prompt in prompts[0]]
    assert with_prefix.manager().blocks == without.manager().blocks - 5


def test_pools_have_the_papers_size() -> None:
    assert [model.kv_blocks * 16 for model in MODELS.values()] == [15696, 9696, 60096, 15696]
    assert MODELS["opt-13b"].shape(16).block_bytes == 13_107_200
    assert MODELS["opt-13b"].host_blocks(16) == 1638
    assert MODELS["opt-13b"].blocks(32) == 490


def test_curves_go_on_until_they_cross_the_level(monkeypatch: pytest.MonkeyPatch) -> None:
    panel = RatePanel("12", "", "opt-13b", "alpaca", ONE, {"astra": (1.0, 2.0)}, "")
    for wall in (0.2, 1.6, 4.0):
        monkeypatch.setattr(RatePanel, "latency_s", lambda _self, _system, rate, wall=wall: 0.1 if rate < wall else 5.0)
        points = panel.curve("astra")
        assert points == sorted(points)
        assert limit(points).x == pytest.approx(wall, rel=0.1)


def test_a_sampling_is_what_its_name_says() -> None:
    assert Sampling.parse("n6-beam") == Sampling(6, True)
    assert Sampling.parse("n6-beam").name == "n6-beam"
    with pytest.raises(InputError, match="n1, n2"):
        Sampling.parse("beam")
    trees = [list(zip(range(9), Sampling(4, True).forks("seed") or [], strict=False)) for _ in range(2)]
    assert trees[0] == trees[1]
    assert Sampling(4).forks("seed") is None


def test_every_figure_has_a_part_and_a_part_writes_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_panels, "_DURATION_S", 3.0)
    monkeypatch.setattr(figures, "PANELS", PANELS[3:4])
    assert {panel.figure for panel in PANELS} == {"12", "14", "16"}
    assert set(PARTS) == {"rates", "memory", "blocks"}
    assert figures.main(["--only", "rates", "--out", str(tmp_path), "--workers", "1"]) == 0
    (panel,) = json.loads((tmp_path / "paged_rates.json").read_text())["panels"]
    assert set(panel["curves"]) == {"astra", "orca-oracle", "orca-power2", "orca-constant"}
    assert set(panel["gains"]) == {"orca-oracle", "orca-power2", "orca-constant"}
