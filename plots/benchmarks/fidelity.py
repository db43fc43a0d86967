"""The simulator beside the real pool: attainment, median TTFT and median TPOT over the load."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from plots.draw.style import figure_style, system_look, system_name, write_picture

Outcome = Mapping[str, float]
Row = Mapping[str, Any]
"""One load of a policy: ``measured``, and ``predicted`` and ``at_speed``, which are simulated."""

_PANELS: tuple[tuple[str, Callable[[Outcome], float]], ...] = (
    ("tokens on time (%)", lambda outcome: 100 * outcome["slo_attainment"]),
    ("median TTFT (ms)", lambda outcome: 1e3 * outcome["ttft_p50_s"]),
    ("median TPOT (ms)", lambda outcome: 1e3 * outcome["tpot_p50_s"]),
)


def draw_fidelity(results: Mapping[str, Any], path: Path) -> None:
    """Three panels; lines simulated, rings measured, by policy."""
    found: Mapping[str, Sequence[Row]] = results["policies"]
    with figure_style():
        figure = Figure(figsize=(8.4, 3.3), layout="constrained")
        for axes, (label, value) in zip(figure.subplots(1, 3), _PANELS, strict=True):
            for policy, rows in found.items():
                _draw_policy(axes, policy, rows, value)
            axes.set_xlabel("requests per second")
            axes.set_title(label)
            if "TTFT" in label:
                axes.set_yscale("log")
            else:
                axes.set_ylim(bottom=0)
            axes.spines[["top", "right"]].set_visible(False)
        handles = figure.axes[0].get_legend_handles_labels()
        figure.legend(*handles, frameon=False, loc="outside lower center", ncols=3 if len(found) > 1 else 1)
        write_picture(figure, path)


def _draw_policy(axes: Axes, policy: str, rows: Sequence[Row], value: Callable[[Outcome], float]) -> None:
    """Simulated at the machine's speed, predicted beforehand, and measured."""
    rates, name = [row["rate_per_s"] for row in rows], system_name(policy)
    line = system_look(policy).line | {"marker": "none"}
    axes.plot(rates, [value(row["at_speed"]["outcome"]) for row in rows], label=f"{name}: simulated", **line)
    beforehand = line | {"linestyle": ":", "alpha": 0.6}
    axes.plot(rates, [value(row["predicted"]["outcome"]) for row in rows], label=f"{name}: predicted", **beforehand)
    measured = system_look(policy, measured=True).line | {"linestyle": "none"}
    axes.plot(rates, [value(row["measured"]) for row in rows], label=f"{name}: measured", **measured)
