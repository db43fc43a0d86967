"""Fits of the latency model: caps found, impossible points dropped, ranges narrowed, errors honest."""

from __future__ import annotations

import csv
import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegaeon.core.profile import LatencyProfile
from aegaeon.latency.__main__ import main
from aegaeon.latency.estimate.errors import LatencyError
from aegaeon.latency.estimate.model_facts import CatalogueModel
from aegaeon.latency.files.profile_book import ProfileBook
from aegaeon.latency.files.profile_file import ProfileFile
from aegaeon.latency.fit.least_squares import fit_relative, mean_relative_error
from aegaeon.latency.fit.measured_fit import find_cap, fit
from aegaeon.latency.fit.measurement import Measurement, read_measurements

ROOT = Path(__file__).parents[2]
MEASURED = ROOT.parent / "shared" / "data" / "measured_latency.csv"
PUBLISHED_FITS = MEASURED.with_name("fits.csv")
TRUE = LatencyProfile(p0_s=8e-3, p1_s=2e-5, p2_s=3e-10, d0_s=9e-3, d1_s=5e-8, d2_s=7e-5)
FASTEST = LatencyProfile(p0_s=0.0, p1_s=1e-5, p2_s=1e-10, d0_s=4e-3, d1_s=1e-8, d2_s=0.0)
LENGTHS = [2**k for k in range(4, 13)]
BATCHES = [1, 2, 4, 8, 16, 30, 60, 100, 150, 200]


def measure(cap: int | None = None, noise: float = 0.0, profile: LatencyProfile = TRUE) -> list[Measurement]:
    """A grid as the published ones; beyond ``cap`` the rest of the prompts leaks into the decode steps."""
    draw = random.Random(7)
    points = []
    for length in LENGTHS:
        for batch in (batch for batch in BATCHES if length * batch <= 8192):
            together = batch if cap is None else min(batch, max(1, cap // length))
            prefill_s = profile.prefill_s([length] * together) * (1 + draw.uniform(-noise, noise))
            rest_s = profile.prefill_s([length] * batch) - profile.prefill_s([length] * together)
            step_s = profile.decode_step_s(length * batch, batch) * (1 + draw.uniform(-noise, noise)) + rest_s / 10
            points.append(Measurement(length, batch, prefill_s, step_s))
    return points


def test_noiseless_measurements_give_their_coefficients_back() -> None:
    found = fit(measure(), FASTEST)
    for name in ("p0_s", "p1_s", "p2_s", "d0_s", "d1_s", "d2_s"):
        assert getattr(found.profile, name) == pytest.approx(getattr(TRUE, name), rel=1e-6)
    assert found.prefill.mean_error < 1e-9
    assert found.decode.mean_error < 1e-9
    assert (found.prefill.low, found.prefill.high, found.decode.high) == (16, 8192, 200)


@pytest.mark.parametrize("cap", [1024, 2048, 4096, None])
def test_the_cap_on_batched_tokens_is_found_and_what_lies_beyond_left_out(cap: int | None) -> None:
    points = measure(cap, noise=0.04)
    found = fit(points, FASTEST)
    assert found.batched_token_cap == find_cap(points) == cap
    assert all(sample.done[1] <= (cap or 8192) for sample in found.decode.samples)
    assert found.profile.p1_s == pytest.approx(TRUE.p1_s, rel=0.1)
    assert found.profile.d0_s == pytest.approx(TRUE.d0_s, rel=0.05)


def test_times_that_the_device_cannot_reach_are_dropped() -> None:
    points = measure()
    points[3] = replace(points[3], decode_step_s=4e-4)
    points[20] = replace(points[20], prefill_s=1e-4)
    found = fit(points, FASTEST)
    assert found.dropped == 2
    assert found.profile.d0_s == pytest.approx(TRUE.d0_s, rel=1e-6)


def test_a_slope_that_noise_made_too_small_is_held_at_what_the_device_allows() -> None:
    found = fit(measure(profile=replace(TRUE, d1_s=-3e-8)), FASTEST)
    assert found.profile.d1_s == FASTEST.d1_s


def test_a_jump_at_large_batches_narrows_the_range() -> None:
    jumped = [replace(p, decode_step_s=p.decode_step_s * (3 if p.batch_size > 60 else 1)) for p in measure()]
    found = fit(jumped, FASTEST)
    assert found.decode.high < 200
    assert found.decode.mean_error <= 0.10
    assert len(found.decode.samples) < found.sound == len(found.prefill.samples)


def test_measurements_that_no_line_fits_are_refused() -> None:
    draw = random.Random(3)
    wild = [replace(point, decode_step_s=point.decode_step_s * draw.choice([1, 9])) for point in measure()]
    with pytest.raises(LatencyError, match="no range of at least 12 points fits decode within 10%"):
        fit(wild, FASTEST)


def test_too_few_points_are_refused() -> None:
    with pytest.raises(LatencyError, match="only 5 of 5 points"):
        fit(measure()[:5], FASTEST)


@given(st.integers(0, 10**6), st.integers(4, 30))
def test_least_squares_keep_the_bounds_and_are_not_beaten_by_a_neighbour(seed: int, rows: int) -> None:
    draw = np.random.default_rng(seed)
    features, target = draw.uniform(-1, 1, (rows, 3)), draw.uniform(0.1, 2, rows)
    lower = draw.uniform(-1, 1, 3)
    found = fit_relative(features, target, lower)
    assert (found >= lower - 1e-9).all()
    best = float(((features @ found / target - 1) ** 2).sum())
    for _ in range(20):
        other = np.maximum(found + draw.normal(0, 0.05, 3), lower)
        assert best <= float(((features @ other / target - 1) ** 2).sum()) * (1 + 1e-9)


def test_the_mean_relative_error_counts_both_directions() -> None:
    assert mean_relative_error(np.array([[1.0], [1.0]]), np.array([1.0, 2.0]), np.array([1.5])) == pytest.approx(0.375)


# -- files


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(["model,device,input_len,batch_size,prefill_ms,decode_step_ms", *lines]) + "\n")
    return path


def test_sets_are_read_by_model_and_device(tmp_path: Path) -> None:
    sets = read_measurements(write(tmp_path / "m.csv", "a,H100,16,2,10,9.5", "a,A10,16,1,20,19", "a,H100,32,1,10,9"))
    assert [len(points) for points in sets.values()] == [2, 1]
    assert sets["a", "H100"][0] == Measurement(16, 2, 0.01, 0.0095)
    assert sets["a", "H100"][0].batched_tokens == 32


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("a,H100,16,1,ten,9", "line 3: could not convert"),
        ("a,H100,0,1,10,9", "line 3: lengths and batches start at 1"),
        ("a,H100,16,1,-1,9", "line 3: times must be positive"),
        ("a,H100,16,1,nan,9", "line 3: times must be positive"),
        ("a,H100,16,1,10", "line 3: float"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, line: str, said: str) -> None:
    path = write(tmp_path / "m.csv", "a,H100,16,1,10,9", line)
    with pytest.raises(LatencyError, match=said) as caught:
        read_measurements(path)
    assert str(path) in str(caught.value)


def test_missing_columns_rows_and_files_are_said(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("model,device\na,b\n")
    with pytest.raises(LatencyError, match="lacks the columns input_len, batch_size"):
        read_measurements(tmp_path / "x.csv")
    with pytest.raises(LatencyError, match="has no rows"):
        read_measurements(write(tmp_path / "m.csv"))
    with pytest.raises(LatencyError, match="cannot read"):
        read_measurements(tmp_path / "absent.csv")


# -- the published measurements, where they are


@pytest.mark.skipif(not MEASURED.exists(), reason="the shared measurements are not here")
def test_shipped_profiles_are_the_fits_of_the_published_measurements(tmp_path: Path) -> None:

    assert (
        main(["fit", str(MEASURED), "--models", str(ROOT / "profiles/models"), "--out", str(tmp_path), "--date=x"]) == 0
    )
    made = sorted(tmp_path.rglob("*.json"))
    assert len(made) == 33
    for path in made:
        new = ProfileFile.read(path)
        shipped = ProfileFile.read(ROOT / "profiles" / path.relative_to(tmp_path))
        assert (new.fit, new.validity) == (shipped.fit, shipped.validity)
        assert new.coefficients.model_dump() == pytest.approx(shipped.coefficients.model_dump(), rel=1e-4)


@pytest.mark.skipif(not PUBLISHED_FITS.exists(), reason="the shared fits are not here")
def test_our_fits_agree_with_independent_ones_of_the_same_points() -> None:

    book = ProfileBook.open(ROOT / "profiles")
    with PUBLISHED_FITS.open(newline="") as file:
        rows = list(csv.DictReader(file))
    close = 0
    for row in rows:
        found = book.find(row["model"], row["device"]).profile
        length, batch, context = 700, 16, 16 * 900
        theirs = LatencyProfile(
            float(row["prefill_c0_ms"]) * 1e-3,
            float(row["prefill_per_token_us"]) * 1e-6,
            float(row["prefill_per_token_sq_ps"]) * 1e-12,
            float(row["decode_c0_ms"]) * 1e-3,
            float(row["decode_per_context_token_ns"]) * 1e-9,
            float(row["decode_per_seq_us"]) * 1e-6,
        )
        prefill = found.prefill_s([length]) / theirs.prefill_s([length])
        decode = found.decode_step_s(context // 4, batch) / theirs.decode_step_s(context // 4, batch)
        close += math.isclose(prefill, 1, rel_tol=0.1) and math.isclose(decode, 1, rel_tol=0.1)
    assert close >= len(rows) - 1  # one of theirs was made with points beyond its cap (yi-1.5-6b on H800)


def test_every_measured_name_belongs_to_one_model() -> None:
    names = [name for facts in CatalogueModel.read_all(ROOT / "profiles" / "models") for name in facts.measured_as]
    assert len(names) == len(set(names)) >= 14
