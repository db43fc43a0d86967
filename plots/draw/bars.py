"""Draws stacked bars of shares: rows of parts that add up to one, hatched so that they differ without colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from plots.draw.style import HATCHES, Colour, add_legend, readable_on

WRITTEN_FROM = 0.055  # of a bar: shares below have no room for their number


@dataclass(frozen=True, slots=True)
class Part:
    """A colour of the bars, and its name in the legend."""

    name: str
    colour: Colour


def draw_shares(axes: Axes, rows: Mapping[str, Sequence[float]], parts: Sequence[Part], remarks: Sequence[str]) -> None:
    """A bar per row, top down: ``rows`` name -> an amount per part; ``remarks`` stand at the right of the bars."""
    amounts = np.array(list(rows.values()), dtype=float)
    totals = amounts.sum(axis=1, keepdims=True)
    shares = np.divide(amounts, totals, out=np.zeros_like(amounts), where=totals > 0)
    left = np.cumsum(shares, axis=1) - shares
    for index, part in enumerate(parts):
        bars = axes.barh(
            range(len(rows)),
            shares[:, index],
            left=left[:, index],
            height=0.68,
            color=part.colour,
            edgecolor="white",
            linewidth=0.8,
            hatch=HATCHES[index % len(HATCHES)],
            label=part.name,
        )
        written = [f"{share:.0%}" if share >= WRITTEN_FROM else "" for share in shares[:, index]]
        box = {"facecolor": part.colour, "edgecolor": "none", "pad": 1.0}
        for label in axes.bar_label(bars, written, label_type="center", fontsize=8, color=readable_on(part.colour)):
            if label.get_text():
                label.set_bbox(box)
    for row, remark in enumerate(remarks):
        axes.text(1.015, row, remark, va="center", fontsize=8.5, transform=axes.get_yaxis_transform())
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    add_legend(axes, columns=3)
