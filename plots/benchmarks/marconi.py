"""Prefix caching for hybrid models: Figures 7 to 13 of Marconi (Pan et al., MLSys 2025), and what was published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from plots.draw.style import GREY, INK, LOOKS, Look, figure_style, tint, write_picture

_LOOKS: Mapping[str, Look] = MappingProxyType(
    {"follow": LOOKS[0], "V2": LOOKS[1], "V1": LOOKS[2], "vLLM+": LOOKS[3], "V3": LOOKS[-1]}
)
_NAMES = MappingProxyType(
    {
        "follow": "ours (follow)",
        "V2": "Marconi (V2)",
        "V1": "SGLang+ (V1)",
        "vLLM+": "vLLM+",
        "V3": "best fixed weight (V3)",
    }
)
_TITLES = MappingProxyType({"lmsys": "LMSys-like", "sharegpt": "ShareGPT-like", "swebench": "SWEBench-like"})
_OTHER = LOOKS[-2]
_WHISKERS = (5, 95)

_Point = Mapping[str, Any]


def draw_marconi(results: Mapping[str, Any], path: Path) -> None:
    """All figures on one page. Raises ``KeyError`` for results of one sweep alone."""
    with figure_style():
        figure = Figure(figsize=(13, 11), layout="constrained")
        axes = [each for row in figure.subplots(3, 3) for each in row]
        _draw_rates(axes[0], results["sweeps"])
        _draw_ratios(axes[1], results["sweeps"])
        _draw_ttft(axes[2], results["sweeps"])
        _draw_lengths(axes[3], results["lengths"])
        for place, series in zip(axes[4:], results["series"], strict=True):
            _draw_series(place, series)
        for each in axes:
            each.spines[["top", "right"]].set_visible(False)
        handles = [Line2D([], [], label=_NAMES[name], **look.line) for name, look in _LOOKS.items()]
        handles.append(Line2D([], [], color=GREY, linestyle=":", label="published, on the authors' traces"))
        figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False, handlelength=3.4)
        write_picture(figure, path, dpi=130)


def _rate(point: _Point, system: str) -> float:
    return 100 * float(point["systems"][system]["hit_rate"])


def _draw_rates(axes: Axes, sweeps: Mapping[str, Sequence[_Point]]) -> None:
    """Figure 7: boxes over all points of a data set."""
    systems = [name for name in ("vLLM+", "V1", "V2", "follow") if _has(sweeps, name)]
    _draw_boxes(axes, systems, {name: [_rates(points, name) for points in sweeps.values()] for name in systems})
    means = [np.mean(np.divide(_rates(points, "V2"), _rates(points, "vLLM+"))) for points in sweeps.values()]
    axes.set_xticks(range(len(sweeps)), _ticks(sweeps, [f"V2: {mean:.0f} x vLLM+" for mean in means]))
    axes.set(title="Figure 7: prompt tokens reused, over the sweep", ylabel="hit rate (%)", ylim=(0, None))


def _draw_ratios(axes: Axes, sweeps: Mapping[str, Sequence[_Point]]) -> None:
    """Figure 8: the same, over what LRU reuses."""
    systems = [name for name in ("V2", "follow") if _has(sweeps, name)]
    over = {name: [_over_lru(points, name) for points in sweeps.values()] for name in systems}
    _draw_boxes(axes, systems, over)
    axes.axhline(0, color=GREY, linewidth=0.8)
    highest = [np.quantile(values, 0.95) for values in over[systems[-1]]]
    axes.set_xticks(range(len(sweeps)), _ticks(sweeps, [f"ours P95 {value:+.0f} %" for value in highest]))
    axes.set(title="Figure 8: tokens reused beyond SGLang+", ylabel="hit rate over that of V1 (%)")


def _draw_boxes(axes: Axes, systems: Sequence[str], values: Mapping[str, Sequence[Sequence[float]]]) -> None:
    width = 0.8 / len(systems)
    for place, name in enumerate(systems):
        look = _LOOKS[name]
        axes.boxplot(
            values[name],
            positions=[group + width * (place - (len(systems) - 1) / 2) for group in range(len(values[name]))],
            widths=0.8 * width,
            whis=_WHISKERS,
            showfliers=False,
            patch_artist=True,
            boxprops={"facecolor": tint(look.colour), "edgecolor": look.colour},
            medianprops={"color": INK},
            whiskerprops={"color": look.colour},
            capprops={"color": look.colour},
        )


def _draw_ttft(axes: Axes, sweeps: Mapping[str, Sequence[_Point]]) -> None:
    """Figure 9: how P95 TTFT compares with that of no caching, over all points of all data sets."""
    points = [point for each in sweeps.values() for point in each]
    for name in [name for name in _LOOKS if _has(sweeps, name)]:
        ratios = sorted(100 * point["systems"][name]["ttft_p95_ms"] / point["ttft_p95_ms"] for point in points)
        shares = np.arange(1, len(ratios) + 1) / len(ratios)
        axes.plot(ratios, shares, **(_LOOKS[name].line | {"markevery": 0.12}))
    axes.set(title="Figure 9: 95th percentile of TTFT, all points", ylabel="share of points", ylim=(0, 1.01))
    axes.set_xlabel("P95 TTFT over that without a cache (%)")


def _draw_lengths(axes: Axes, point: _Point) -> None:
    """Figure 10: what is won over LRU, by the length of the input."""
    base = dict(point["systems"]["V1"]["by_length"])
    for name in ("V2", "follow"):
        won = [(length / 1000, 100 * (rate - base[length])) for length, rate in point["systems"][name]["by_length"]]
        axes.plot(*zip(*won, strict=True), **_LOOKS[name].line)
    axes.axhline(0, color=GREY, linewidth=0.8)
    title = f"Figure 10: by length; agents, {point['capacity_gb']:g} GB, {point['sessions_per_s']:g} sessions/s"
    axes.set(title=title, xlabel="tokens of the input (thousands)", ylabel="hit rate beyond V1 (points)")


def _draw_series(axes: Axes, series: Mapping[str, Any]) -> None:
    """Lines over a figure's own axis; dotted what was published."""
    places = range(len(series["labels"]))
    points = series["points"]
    for name in [name for name in _LOOKS if name in points[0]["systems"]]:
        axes.plot(places, [_rate(point, name) for point in points], **_LOOKS[name].line)
    for name, rates in series["published"].items():
        axes.plot(places, rates, color=_LOOKS.get(name, _OTHER).colour, linestyle=":", linewidth=1.2, alpha=0.8)
    chosen = f"\nours: {series['chosen']}" if series["chosen"] else ""
    axes.set_xticks(places, series["labels"])
    axes.set(title=f"Figure {series['figure']}: agents{chosen}", xlabel=series["x"], ylabel="hit rate (%)")
    axes.set_ylim(bottom=0)


def _has(sweeps: Mapping[str, Sequence[_Point]], system: str) -> bool:
    return all(system in point["systems"] for points in sweeps.values() for point in points)


def _rates(points: Sequence[_Point], system: str) -> list[float]:
    return [_rate(point, system) for point in points]


def _over_lru(points: Sequence[_Point], system: str) -> list[float]:
    return [100 * (_rate(point, system) / _rate(point, "V1") - 1) for point in points]


def _ticks(sweeps: Mapping[str, Sequence[_Point]], remarks: Sequence[str]) -> list[str]:
    titles = [_TITLES.get(dataset, dataset) for dataset in sweeps]
    return [f"{title}\n{remark}" for title, remark in zip(titles, remarks, strict=True)]
