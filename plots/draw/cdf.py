"""Draws cumulative distributions of times, with their median and 99th percentile in the legend."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, PercentFormatter

from plots.curves.outcome import Distribution
from plots.draw.style import LOOKS, add_legend

LEAST_S = 1e-4  # where a logarithmic axis begins; what is faster is drawn there


def draw_cdf(axes: Axes, distributions: Mapping[str, Distribution], logarithmic: bool = False) -> None:
    """A curve per entry, times in seconds. ``logarithmic``: for times of several orders of magnitude."""
    for index, (name, distribution) in enumerate(distributions.items()):
        values = np.maximum(distribution.values, LEAST_S) if logarithmic else distribution.values
        seconds = np.concatenate([values[:1], values])  # from zero up
        shares = np.concatenate([[0.0], distribution.shares])
        look = LOOKS[index % len(LOOKS)].line
        axes.plot(seconds, shares, **look, markevery=0.12, label=f"{name}: {_spread(distribution)}")
    if logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g}"))
    axes.set_xlim(left=LEAST_S if logarithmic else -0.02 * axes.get_xlim()[1])
    axes.set_ylim(0, 1.01)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    add_legend(axes, title="median / 99th percentile")


def _spread(distribution: Distribution) -> str:
    return " / ".join(duration(distribution.quantile(share)) for share in (0.5, 0.99))


def duration(seconds: float) -> str:
    """A time with the unit that suits it."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
