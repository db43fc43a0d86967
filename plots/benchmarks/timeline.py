"""The timeline of models per instance: a row for each instance, its turns coloured by model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

Turn = tuple[str, float, float]  # model, start, end in seconds
Colour = tuple[float, float, float]

ROW_INCHES = 0.62
COLUMNS = 800  # of a row's image: about two pixels each, so that even the shortest turn is seen
LEVELS = 48  # of a column: how finely models share it
WIDTH_INCHES = 11.0
FEW_COLOURS = (0, 1, 2, 3, 4, 9, 8, 5, 6)  # of seaborn's colorblind palette: all but the grey, which means idle here
INK = "#333333"
IDLE = "#f0f0f0"


def draw_timeline(results: Mapping[str, Any], path: Path) -> None:
    """The timeline of a result file: ``instances`` with their turns, and a ``title``."""
    turns = {
        name: [(str(model), start, end) for model, start, end in row] for name, row in results["instances"].items()
    }
    plot_timeline(turns, path, results["title"])


def plot_timeline(spans_by_instance: Mapping[str, Sequence[Turn]], path: Path, title: str = "") -> None:
    """Draw which model ran when on each instance, times from the first turn on, and write it to ``path``.

    Where models change faster than a column of pixels can show, the column is split by their shares of its time.
    ``spans_by_instance``: (model, start_s, end_s) of each turn, on one clock; rows are drawn in this order, top down.
    """
    turns = [turn for row in spans_by_instance.values() for turn in row]
    models = sorted({model for model, _, _ in turns})
    colours = dict(zip(models, _palette(len(models)), strict=True))
    start_s = min((start for _, start, _ in turns), default=0.0)
    end_s = max((end for _, _, end in turns), default=1.0)
    with mpl.rc_context({"font.size": 9, "axes.edgecolor": INK, "text.color": INK}):
        figure = Figure(figsize=(WIDTH_INCHES, 1.5 + ROW_INCHES * max(len(spans_by_instance), 2)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        for row, instance_turns in enumerate(spans_by_instance.values()):
            strip = _strip(instance_turns, colours, start_s, end_s)
            _draw_row(axes, row, strip, end_s - start_s, _busy(instance_turns, end_s - start_s))
        _label(axes, list(spans_by_instance), end_s - start_s, title)
        _add_legend(figure, colours)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)


def _palette(count: int) -> list[Colour]:
    """Colours that can be told apart: a chosen set for few models, hues in two shades for many."""
    if count <= len(FEW_COLOURS):
        chosen: list[Colour] = sns.color_palette("colorblind")
        return [chosen[index] for index in FEW_COLOURS[:count]]
    shades = [sns.husl_palette(count, l=lightness) for lightness in (0.45, 0.75)]
    return [shades[index % 2][index] for index in range(count)]


def _draw_row(axes: Axes, row: int, strip: NDArray[np.float64], duration_s: float, remark: str) -> None:
    extent = (0.0, duration_s, row + 0.38, row - 0.38)
    axes.imshow(strip, extent=extent, aspect="auto", interpolation="nearest")
    axes.text(1.005, row, remark, va="center", fontsize=8, transform=axes.get_yaxis_transform())


def _strip(turns: Sequence[Turn], colours: Mapping[str, Colour], start_s: float, end_s: float) -> NDArray[np.float64]:
    """The image of a row [levels, columns, rgb]: each column filled by the models that ran in its time."""
    edges_s = np.linspace(start_s, end_s, COLUMNS + 1)
    busy_s = np.zeros((len(colours), COLUMNS))
    index = {model: number for number, model in enumerate(colours)}
    for model, turn_start_s, turn_end_s in turns:
        overlap_s = np.minimum(edges_s[1:], turn_end_s) - np.maximum(edges_s[:-1], turn_start_s)
        busy_s[index[model]] += np.maximum(overlap_s, 0.0)
    total_s = busy_s.sum(axis=0)
    fills = np.cumsum(busy_s, axis=0) / np.maximum(total_s, 1e-12)
    levels = (np.arange(LEVELS) + 0.5) / LEVELS
    chosen = (levels[:, None, None] > fills).sum(axis=1)  # [levels, columns]: which model
    palette = np.array([*colours.values(), to_rgb(IDLE)])
    strip: NDArray[np.float64] = palette[np.where(total_s > 0, np.minimum(chosen, len(colours) - 1), -1)]
    return strip


def _busy(turns: Sequence[Turn], duration_s: float) -> str:
    return f"{sum(end - start for _, start, end in turns) / duration_s:.0%} busy" if turns else "idle"


def _label(axes: Axes, instances: Sequence[str], duration_s: float, title: str) -> None:
    axes.set_yticks(range(len(instances)), instances)
    axes.set_ylim(len(instances) - 0.4, -0.6)
    axes.set_xlim(0, duration_s)
    axes.set_xlabel("time (s); in a column of several colours these models took turns")
    axes.set_title(title, loc="left", fontsize=10)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _add_legend(figure: Figure, colours: Mapping[str, Colour]) -> None:
    handles = [Patch(color=colour, label=model) for model, colour in colours.items()]
    handles.append(Patch(color=IDLE, label="idle"))
    entry_inches = 0.65 + 0.075 * max(len(str(handle.get_label())) for handle in handles)
    columns = min(len(handles), max(1, int(WIDTH_INCHES / entry_inches)))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
