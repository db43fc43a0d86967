"""All policies in the simulator: attainment over the number of models at two rates, and models at 90 % elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from plots.draw.style import (
    GREY,
    INK,
    figure_style,
    readable_on,
    system_look,
    system_name,
    system_rank,
    write_picture,
)

_BESIDE = ("slack", "aegaeon")  # in every market


def draw_policies(results: Mapping[str, Any], path: Path) -> None:
    """A panel for each sweep, and one for the markets where there are some."""
    shown = results["figure"]
    with figure_style():
        figure = Figure(figsize=(13, 4.2), layout="constrained")
        *sweeps, last = figure.subplots(1, 3, width_ratios=(5, 5, 4))
        for axes, sweep in zip(sweeps, shown["sweeps"], strict=True):
            _draw_sweep(axes, sweep)
        sweeps[0].set_ylabel("tokens on time (%)")
        figure.legend(*sweeps[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
        if shown["markets"]:
            _draw_markets(last, shown["markets"])
        write_picture(figure, path, dpi=160)


def _draw_sweep(axes: Axes, sweep: Mapping[str, Any]) -> None:
    """Beside ``slack`` the curve of its worst model. Points are (models, attainment, worst model)."""
    for curve in sorted(sweep["curves"], key=lambda curve: system_rank(curve["policy"])):
        policy, remark, points = curve["policy"], curve["remark"], curve["points"]
        look, name = system_look(policy), system_name(policy)
        models = [point[0] for point in points]
        style = look.line | ({"linestyle": ":", "alpha": 0.7} if "paper" in remark else {})
        label = f"{name}, {remark}" if remark else name
        axes.plot(models, [100 * point[1] for point in points], label=label, **style)
        if policy == "slack":
            worst = look.line | {"linestyle": ":", "marker": "none"}
            axes.plot(models, [100 * point[2] for point in points], label=f"{name}, its worst model", **worst)
    bound = sweep["bound"]
    axes.axvline(bound, color=INK, linestyle="--", linewidth=1)
    axes.annotate("bound", (bound, 3), xytext=(-3, 0), textcoords="offset points", rotation=90, ha="right", color=INK)
    axes.axhline(90, color=GREY, linewidth=0.6)
    title = f"{sweep['rate']:g} requests/s per model"
    axes.set(title=title, xlabel="models on 16 H100", ylim=(0, 102), xlim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)


def _draw_markets(axes: Axes, markets: Sequence[Mapping[str, Any]]) -> None:
    """Models at 90 % as bars, the bound as a line across each pair."""
    for place, market in enumerate(markets):
        for offset, policy in zip((-0.2, 0.2), _BESIDE, strict=True):
            colour, crossing = system_look(policy).colour, market["crossings"][policy]
            axes.barh(place + offset, crossing["models"], height=0.38, color=colour)
            axes.annotate(
                f"{crossing['mark']}{crossing['models']:.0f}",
                (crossing["models"], place + offset),
                xytext=(-3, 0),
                textcoords="offset points",
                ha="right",
                va="center",
                color=readable_on(colour),
            )
        axes.plot([market["bound"]] * 2, [place - 0.42, place + 0.42], color=INK, linestyle="--", linewidth=1)
    names = [market["name"] for market in markets]
    axes.set(title="models at 90 % in other markets", yticks=range(len(names)), yticklabels=names)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
