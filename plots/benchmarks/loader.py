"""The loader beside its limits and its peers: GB/s of one model, cold and warm."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from plots.draw.style import figure_style, write_picture


def draw_loader(results: Mapping[str, Any], path: Path) -> None:
    """Bars of medians, whiskers of extremes, the limits as lines."""
    shown = results["figure"]
    with figure_style():
        figure = Figure(figsize=(13, 5.5), layout="constrained")
        for axes, panel in zip(figure.subplots(1, len(shown["panels"])), shown["panels"], strict=True):
            _draw_panel(axes, panel)
        figure.suptitle(shown["title"])
        write_picture(figure, path)


def _draw_panel(axes: Axes, panel: Mapping[str, Any]) -> None:
    bars = sorted(panel["bars"], key=lambda bar: bar["median"])
    medians = [bar["median"] for bar in bars]
    whiskers = ([bar["median"] - bar["low"] for bar in bars], [bar["high"] - bar["median"] for bar in bars])
    colours = ["tab:orange" if bar["ours"] else "tab:blue" for bar in bars]
    axes.barh([bar["name"] for bar in bars], medians, xerr=whiskers, color=colours, ecolor="grey")
    axes.axvline(panel["limit"]["median"], color="black", linestyle="--", label=panel["limit"]["name"])
    axes.set(title=panel["title"], xlabel="GB/s (median; whiskers: lowest and highest)")
    axes.legend(loc="lower right")
