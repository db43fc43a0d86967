"""Policies beside each other on the real pool: attainment over the load, of all requests and of the worst model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.figure import Figure

from plots.draw.style import figure_style, system_look, system_name, write_picture

_PANELS = (("all requests", "attainment"), ("the worst model", "worst_model"))


def draw_runtime_policies(results: Mapping[str, Any], path: Path) -> None:
    """Lines through the medians, a point for each round."""
    loads = {load["requests_per_s"]: load["policies"] for load in results["loads"]}
    with figure_style():
        figure = Figure(figsize=(7.2, 3.2), layout="constrained")
        for axes, (title, name) in zip(figure.subplots(1, 2, sharey=True), _PANELS, strict=True):
            for policy in next(iter(loads.values())):
                look = system_look(policy)
                rounds = {rate: [100 * one[name] for one in by[policy]["rounds"]] for rate, by in loads.items()}
                medians = [median(each) for each in rounds.values()]
                axes.plot(list(rounds), medians, label=system_name(policy), **look.line)
                points = [(rate, value) for rate, values in rounds.items() for value in values]
                axes.scatter(*zip(*points, strict=True), s=9, color=look.colour, alpha=0.5, linewidths=0)
            axes.set_title(title)
            axes.set_xticks(list(loads))
            axes.set_xlabel("requests per second")
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_ylim(0, 103)
        figure.axes[0].set_ylabel("tokens on time (%)")
        figure.axes[0].legend(frameon=False, loc="lower left")
        write_picture(figure, path)
