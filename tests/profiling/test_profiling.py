"""Profiling: grids, the journal, fits of known truths, the files they make; and a real model, end to end."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aegaeon.cli.app import app
from aegaeon.core.profile import LatencyProfile
from aegaeon.device.common.local_cpu import local_cpu
from aegaeon.latency.files.profile_book import ProfileBook
from aegaeon.latency.files.profile_file import ProfileFile
from aegaeon.latency.fit.part_fit import MAX_ERROR, Sample
from aegaeon.latency.fit.step_fit import fit_steps
from aegaeon.profiling.campaign import Campaign
from aegaeon.profiling.grid import GridLimits, make_grid
from aegaeon.profiling.journal import Journal
from aegaeon.profiling.measured_file import batch_sample, prompt_sample
from aegaeon.profiling.point import DecodePoint, HandOverPoint, PrefillPoint, SwitchPoint
from aegaeon.settings.error import SettingsError
from aegaeon.toy_models.make_model import make_model
from aegaeon.toy_models.model_request import ModelSizes

TRUTH = LatencyProfile(8e-3, 300e-6, 200e-9, 9e-3, 2e-6, 250e-6)
CHUNK = 512


def prompts(truth: LatencyProfile, noise: float = 0.0, seed: int = 0) -> list[Sample]:
    dice = random.Random(seed)
    samples = []
    for tokens in (16, 24, 32, 64, 128, 256, 512, 1024, 2048):
        chunks = -(-tokens // CHUNK)
        seconds = truth.p0_s * chunks + truth.p1_s * tokens + truth.p2_s * tokens**2
        samples.append(prompt_sample(tokens, CHUNK, seconds * (1 + dice.uniform(-noise, noise))))
    return samples


def batches(truth: LatencyProfile, noise: float = 0.0, seed: int = 0) -> list[Sample]:
    dice = random.Random(seed)
    return [
        batch_sample(b, b * context, truth.decode_step_s(b * context, b) * (1 + dice.uniform(-noise, noise)))
        for b, context in product((1, 2, 4, 8, 16, 32), (32, 128, 512))
    ]


class TestFit:
    def test_it_finds_the_truth_chunk_by_chunk(self) -> None:
        fit = fit_steps(prompts(TRUTH), batches(TRUTH))
        for name in ("p0_s", "p1_s", "p2_s", "d0_s", "d1_s", "d2_s"):
            assert getattr(fit.profile, name) == pytest.approx(getattr(TRUTH, name), rel=1e-6)
        assert fit.worst_error <= MAX_ERROR
        assert (fit.prefill.low, fit.prefill.high, fit.decode.low, fit.decode.high) == (16, 2048, 1, 32)

    def test_noise_within_the_limit_is_told_as_an_error(self) -> None:
        fit = fit_steps(prompts(TRUTH, 0.08), batches(TRUTH, 0.08))
        assert fit.worst_error <= MAX_ERROR
        assert 0.01 < fit.decode.mean_error < 0.08

    def test_a_batch_size_from_which_the_line_bends_is_left_out(self) -> None:
        bent = [
            replace(sample, seconds=4 * sample.seconds) if sample.size == 32 else sample for sample in batches(TRUTH)
        ]
        fit = fit_steps(prompts(TRUTH), bent)
        assert fit.worst_error <= MAX_ERROR
        assert fit.decode.high == 16

    def test_short_prompts_that_leave_the_line_are_left_out(self) -> None:
        odd = [replace(s, seconds=s.seconds * (6 if s.size < 32 else 1)) for s in prompts(TRUTH)]
        fit = fit_steps(odd, batches(TRUTH))
        assert fit.worst_error <= MAX_ERROR
        assert fit.prefill.low == 32

    def test_what_is_no_line_at_all_is_not_called_good(self) -> None:
        dice = random.Random(1)
        wild = [replace(s, seconds=s.seconds * dice.uniform(0.3, 3)) for s in batches(TRUTH)]
        fit = fit_steps(prompts(TRUTH), wild)
        assert fit.worst_error == fit.decode.mean_error > MAX_ERROR
        assert len(fit.decode.samples) >= len(wild) // 2

    def test_no_coefficient_is_negative(self) -> None:
        falling = [replace(s, seconds=0.01 / s.size) for s in batches(TRUTH)]
        assert min(fit_steps(prompts(TRUTH), falling).decode.coefficients_s) >= 0

    def test_too_few_points_are_refused(self) -> None:
        with pytest.raises(ValueError, match="needs 6 points"):
            fit_steps(prompts(TRUTH)[:5], batches(TRUTH))


class TestGrid:
    def test_it_stays_within_the_limits(self) -> None:
        grid = make_grid(GridLimits(context_tokens=1000, kv_tokens=3000, batch=12), quick=False)
        for point in grid:
            match point:
                case PrefillPoint():
                    assert point.tokens < 1000
                case DecodePoint():
                    assert point.batch <= 12
                    assert point.batch * point.context <= 3000
        assert {PrefillPoint(999), DecodePoint(12, 64), HandOverPoint(), SwitchPoint(cold=True)} <= set(grid)

    def test_no_point_is_there_twice(self) -> None:
        for quick in (False, True):
            grid = make_grid(GridLimits(640, 10_000, 16), quick=quick)
            assert len({point.name for point in grid}) == len(grid)

    @pytest.mark.parametrize(("context", "batch"), [(128, 4), (512, 8), (512, 32), (4096, 4)])
    def test_quick_with_small_limits_still_gives_enough_to_fit(self, context: int, batch: int) -> None:
        grid = make_grid(GridLimits(context, 10_000, batch), quick=True)
        for kind in (PrefillPoint, DecodePoint):
            assert sum(isinstance(point, kind) for point in grid) >= 6

    def test_quick_has_fewer_points_and_enough_to_fit(self) -> None:
        limits = GridLimits(2048, 100_000, 64)
        quick, full = (make_grid(limits, quick=each) for each in (True, False))
        assert len(quick) < 0.7 * len(full)
        for kind in (PrefillPoint, DecodePoint):
            assert sum(isinstance(point, kind) for point in quick) >= 6


class TestJournal:
    def test_it_is_gone_on_with_and_disturbed_rounds_hardly_count(self, tmp_path: Path) -> None:
        journal = Journal.open(tmp_path / "x" / "m.jsonl", {"model": "m"})
        for turn, seconds in enumerate((3.0, 1.0, 9.0, 2.0, 5.0)):
            journal.add(PrefillPoint(16), turn, seconds)
        again = Journal.open(tmp_path / "x" / "m.jsonl", {"model": "m"})
        assert (PrefillPoint(16), 4) in again
        assert (PrefillPoint(16), 5) not in again
        assert again.seconds(PrefillPoint(16)) == 2.0
        assert again.seconds(PrefillPoint(32)) is None

    def test_measurements_of_something_else_are_not_used(self, tmp_path: Path) -> None:
        Journal.open(tmp_path / "m.jsonl", {"threads": 1}).add(HandOverPoint(), 0, 1.0)
        assert Journal.open(tmp_path / "m.jsonl", {"threads": 2}).seconds(HandOverPoint()) is None

    def test_fresh_begins_anew(self, tmp_path: Path) -> None:
        Journal.open(tmp_path / "m.jsonl", {}).add(HandOverPoint(), 0, 1.0)
        assert Journal.open(tmp_path / "m.jsonl", {}, fresh=True).seconds(HandOverPoint()) is None

    @pytest.mark.parametrize("tail", ['{"point": "hand-o', "\x00\x01", '{"point": "x"}', "[]"])
    def test_a_line_that_was_cut_off_is_ignored(self, tmp_path: Path, tail: str) -> None:
        path = tmp_path / "m.jsonl"
        Journal.open(path, {}).add(HandOverPoint(), 0, 1.0)
        with path.open("a") as file:
            file.write(tail)
        journal = Journal.open(path, {})
        journal.add(HandOverPoint(), 1, 3.0)
        assert (HandOverPoint(), 1) in Journal.open(path, {})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("profiled") / "tiny"
    make_model("llama", folder, ModelSizes(hidden_size=256, layers=4, heads=4, kv_heads=4, max_context=128))
    return folder


class TestCommandLine:
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ([], "no model to profile"),
            (["{tmp}/absent"], "does not exist"),
            (["{tmp}"], "is empty"),
            (["a={model}", "a={model}"], "two models are called 'a'"),
            (["{model}", "--device", "tpu"], "choose from auto, cpu, cuda"),
            (["{model}", "--threads", "0"], "--threads must be between 1 and"),
            (["{model}", "--max-error", "7"], "--max-error is a share"),
            (["{model}", "--out", "{model}/config.json"], "is a file"),
            (["{model}", "--max-context", "8"], "--max-context must be at least 64"),
        ],
    )
    def test_mistakes_are_told(self, model: Path, tmp_path: Path, arguments: list[str], said: str) -> None:
        filled = [argument.format(tmp=tmp_path, model=model) for argument in arguments]
        result = CliRunner().invoke(app, ["profile", *filled])
        assert isinstance(result.exception, SettingsError)
        assert said in str(result.exception)

    @pytest.mark.slow
    def test_a_model_is_profiled_and_a_rerun_measures_nothing_anew(self, model: Path, tmp_path: Path) -> None:
        def campaign(max_error: float) -> Campaign:
            return Campaign({"tiny": model}, tmp_path, 1, 8 << 20, 64, 4, 96, max_error, True, False, "2026-11-21")

        told: list[tuple[int, int, str]] = []
        files, problems = campaign(0.9).run(lambda *progress: told.append(progress))
        assert not problems
        assert told[0][0] == 0
        assert told[-1][1] > 10
        device = local_cpu(1).name
        entry = ProfileBook.open(tmp_path).measured("tiny", device)
        assert entry is not None
        assert entry.profile == files[0].coefficients.profile
        assert entry.profile.decode_step_s(64, 1) > 0
        assert entry.hand_over_s is not None
        file = ProfileFile.read(tmp_path / device / "tiny.json")
        assert file.provenance.date == "2026-11-21"
        assert "1 of" in file.provenance.source
        told.clear()
        again, _ = campaign(0.9).run(lambda *progress: told.append(progress))
        assert again == files
        assert not told

        _, refused = campaign(1e-9).run(lambda *progress: None)
        assert "no profile written, the fit is off by" in refused[0]

    def test_measurements_are_plain_lines(self, tmp_path: Path) -> None:
        journal = Journal.open(tmp_path / "m.jsonl", {"model": "m"})
        journal.add(DecodePoint(8, 256), 1, 0.0123)
        lines = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
        assert lines[1] == {"point": "decode 8x256", "round": 1, "seconds": 0.0123}
