"""The figure of models per instance, by its pixels."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from numpy.typing import NDArray

from plots.benchmarks.timeline import plot_timeline

WHITE = 0xFFFFFF
MIN_PIXELS = 4000  # a bar has more, text and lines have less


def _pixels(path: Path) -> NDArray[np.int64]:
    """Red, green and blue from 0 to 255 [rows, columns, 3]."""
    return (matplotlib.image.imread(path)[:, :, :3] * 255).round().astype(int)


def _numbers(pixels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Each colour as one number, which sorts faster."""
    return pixels @ np.array([1 << 16, 1 << 8, 1])


def _areas(path: Path) -> list[int]:
    """Pixels of each colour that fills a larger area, but for white; largest first."""
    colours, counts = np.unique(_numbers(_pixels(path)), return_counts=True)
    return sorted((int(n) for c, n in zip(colours, counts, strict=True) if c != WHITE and n > MIN_PIXELS), reverse=True)


def test_areas_are_times(tmp_path: Path) -> None:
    # Of eight seconds on two instances: model a 4, model b 2, idle 2; times start anywhere.
    turns = {"decode-0": [("a", 100.0, 104.0)], "decode-1": [("b", 101.0, 103.0)]}
    plot_timeline(turns, tmp_path / "new" / "timeline.png", "a title")
    model_a, *others = _areas(tmp_path / "new" / "timeline.png")
    assert [area / model_a for area in others] == pytest.approx([0.5, 0.5], abs=0.03)


def test_each_model_has_its_colour(tmp_path: Path) -> None:
    turns = {"decode-0": [(f"model-{index}", float(index), index + 1.0) for index in range(24)]}
    plot_timeline(turns, tmp_path / "timeline.png")
    assert len(_areas(tmp_path / "timeline.png")) == 24


def _bar_colours(path: Path) -> int:
    """How many colours there are above the axis and the legend."""
    pixels = _pixels(path)
    bars = pixels[: int(len(pixels) * 0.6)]
    return len(np.unique(_numbers(bars[np.ptp(bars, axis=2) > 100])))


def test_a_turn_too_short_for_a_pixel_is_still_seen(tmp_path: Path) -> None:
    plot_timeline({"decode-0": [("short", 500.0, 500.0001), ("long", 0.0, 400.0)], "idle": []}, tmp_path / "both.png")
    plot_timeline({"decode-0": [("long", 0.0, 400.0)], "idle": []}, tmp_path / "long.png")
    assert _bar_colours(tmp_path / "both.png") == 1 + _bar_colours(tmp_path / "long.png")


def test_models_that_alternate_faster_than_pixels_share_the_height(tmp_path: Path) -> None:
    turns = [("abc"[index % 3], index * 0.001, (index + 1) * 0.001) for index in range(9000)]
    plot_timeline({"decode-0": turns}, tmp_path / "timeline.png")
    areas = _areas(tmp_path / "timeline.png")
    assert len(areas) == 3
    assert areas[2] / areas[0] == pytest.approx(1.0, abs=0.15)


def test_no_turns_make_an_empty_figure(tmp_path: Path) -> None:
    plot_timeline({}, tmp_path / "timeline.png")
    pixels = matplotlib.image.imread(tmp_path / "timeline.png")[:, :, :3]
    assert np.ptp(pixels, axis=2).max() == 0.0  # no colour
