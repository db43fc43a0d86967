"""LMCache's harness: times to the first token, throughputs and GPU memory, as its own figure has them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from plots.draw.style import LOOKS, figure_style, write_picture

Row = Mapping[str, Any]

_PANELS = (("TTFT", "first token (s)"), ("throughput", "chunks/s"))


def draw_lmcache(results: Mapping[str, Any], path: Path) -> None:
    """The picture of a JSON file of results."""
    with figure_style():
        write_picture(harness_figure(results["rows"]), path, dpi=140)


def harness_figure(rows: Sequence[Row]) -> Figure:
    """A column for each experiment, a line for each engine; one more for the memory of GPUs, if there are some."""
    experiments = [[*some] for _, some in groupby(rows, key=lambda row: row["expr_id"])]
    memory = [{"expr_id": some[0]["expr_id"], **json.loads(some[0]["gpu_memory"])} for some in experiments]
    columns = len(experiments) + (len(memory[0]) > 1)
    figure = Figure(figsize=(3.7 * columns, 5.2), layout="constrained")
    grid = figure.subplots(len(_PANELS), columns, squeeze=False)
    for column, some in enumerate(experiments):
        for line, (name, label) in enumerate(_PANELS):
            _draw_engines(grid[line][column], some, name)
            grid[line][column].set(ylabel=label if not column else None, xlabel="request")
        grid[0][column].set_title(f"context of {some[0]['context_len']} tokens")
    if columns > len(experiments):
        _draw_memory(grid[0][-1], memory)
        grid[1][-1].set_visible(False)
    grid[0][0].legend(frameon=False)
    return figure


def _draw_engines(axes: Axes, rows: Sequence[Row], name: str) -> None:
    for engine in sorted({row["engine_id"] for row in rows}):
        points = [(row["request_id"], row[name]) for row in rows if row["engine_id"] == engine and row[name] >= 0]
        if points:
            axes.plot(*zip(*points, strict=True), label=f"engine {engine}", **LOOKS[engine % len(LOOKS)].line)
    axes.set_ylim(0, None)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_memory(axes: Axes, memory: Sequence[Row]) -> None:
    for place, name in enumerate(name for name in memory[0] if name != "expr_id"):
        used_gib = [each[name] / 1024 for each in memory]
        axes.plot([each["expr_id"] for each in memory], used_gib, label=name, **LOOKS[place % len(LOOKS)].line)
    axes.set(title="memory", xlabel="experiment", ylabel="GPU memory (GiB)", ylim=(0, None))
    axes.legend(frameon=False)
