"""Draws attainment under growing load: a line per system, the 90 % line, and where each system falls through it."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from aegaeon.crossing import LEVEL, Crossing, CrossingKind, bound_crossing
from plots.curves.curve import Curve
from plots.draw.style import INK, Look, add_legend

LABEL_HEIGHT = 0.07  # of a number at the bottom, in shares of attainment
LABEL_WIDTH = 0.085  # in shares of the width: numbers closer than that go into another row


def draw_attainment(axes: Axes, curves: Sequence[Curve], looks: Sequence[Look], digits: int = 0) -> None:
    """``digits``: decimals of crossing points. Where all curves have one source it is said once."""
    sources = {str(curve.source) for curve in curves}
    for curve, look in zip(curves, looks, strict=True):
        xs, ys = zip(*curve.points, strict=True)
        axes.plot(xs, ys, **look.line, label=legend_text(curve, digits, with_source=len(sources) > 1))
    axes.axhline(LEVEL, color=INK, linewidth=1.0, linestyle=(0, (1, 1.2)), zorder=1)
    axes.set_ylim(0, 1.03)
    axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, LEVEL, 1.0])
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    _mark_crossings(axes, curves, looks, digits)
    shared = f"{sources.pop()}\n" if len(sources) == 1 else ""
    add_legend(axes, title=f"{shared}at or above {LEVEL:.0%} up to")


def draw_bound(axes: Axes, points: Sequence[tuple[float, float]], digits: int = 0) -> None:
    """Where no policy can be on time any more; ``points``: (x, load of the bound).

    A line where the load is 1; at the edge what it is there, if that is elsewhere.
    """
    limit = bound_crossing(points)
    if limit.kind is CrossingKind.CROSSES:
        x, text = limit.x, f"bound: {limit.text(digits)}"
        axes.axvline(x, color=INK, linewidth=1.0, linestyle="--", zorder=1.5)
    else:
        x, load = points[-1] if limit.kind is CrossingKind.BEYOND else points[0]
        text = f"bound: load {load:.2f} at {x:g}"
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.0}
    axes.annotate(
        text, (x, 0.5), xytext=(-4, 0), textcoords="offset points", rotation=90, ha="right", va="center", bbox=box
    )


def legend_text(curve: Curve, digits: int, with_source: bool = True) -> str:
    """The line of a curve in the legend: what it is, who says so, and how far it holds the level."""
    source = f" ({curve.source})" if with_source else ""
    return f"{curve.label}{source}: {reach(curve, digits)}"


def reach(curve: Curve, digits: int) -> str:
    """How far a curve holds the level, and why nobody knows what is beyond it."""
    ends_early = curve.crossing.kind is CrossingKind.BEYOND and curve.end
    return f"{curve.crossing.x:g}, then {curve.end}" if ends_early else curve.crossing.text(digits)


def _mark_crossings(axes: Axes, curves: Sequence[Curve], looks: Sequence[Look], digits: int) -> None:
    """A line from each crossing down to its number; numbers that would touch go into rows above each other."""
    rows: list[float] = []  # where the last number of each row stands, in shares of the width
    marks = [(curve.crossing, look) for curve, look in zip(curves, looks, strict=True)]
    for point, look in sorted(marks, key=lambda mark: mark[0].x):
        if point.kind is CrossingKind.CROSSES:
            place = _share_of_width(axes, point.x)
            free = [row for row, last in enumerate(rows) if place - last > LABEL_WIDTH]
            row = free[0] if free else len(rows)
            rows[row : row + 1] = [place]
            _mark(axes, point, look, point.text(digits), height=LABEL_HEIGHT * (row + 0.6))


def _share_of_width(axes: Axes, x: float) -> float:
    """Where an x lies between the left and the right end, whatever the scale."""
    low, high, at = axes.get_xaxis_transform().transform([(end, 0) for end in (*axes.get_xlim(), x)])[:, 0]
    return float((at - low) / (high - low))


def _mark(axes: Axes, crossing: Crossing, look: Look, text: str, height: float) -> None:
    axes.plot([crossing.x] * 2, [LEVEL, height], color=look.colour, linewidth=0.9, linestyle=(0, (2, 1.5)), zorder=1.5)
    axes.plot(crossing.x, LEVEL, marker=look.marker, color="white", markeredgecolor=look.colour, ms=6.5, zorder=4)
    box = {"facecolor": "white", "edgecolor": look.colour, "linewidth": 0.7, "boxstyle": "round,pad=0.2"}
    axes.text(crossing.x, height, text, ha="center", va="center", fontsize=8.5, bbox=box, zorder=5)
