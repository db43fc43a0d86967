"""Paged KV beside the Orca baselines: Figures 2, 12 to 16, 18b and 19 of vLLM's paper, simulated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from plots.draw.style import GREY, HATCHES, INK, PALETTE, Look, figure_style, readable_on, tint, write_picture

_NAMES: Mapping[str, str] = MappingProxyType(
    {"astra": "vLLM (paged)", "orca-oracle": "Orca, oracle", "orca-power2": "Orca, pow2", "orca-constant": "Orca, max"}
)
_DATASETS: Mapping[str, str] = MappingProxyType({"sharegpt": "ShareGPT", "alpaca": "Alpaca"})
_LOOKS: Mapping[str, Look] = MappingProxyType(
    {
        "astra": Look(PALETTE[0], "o", (), bold=True),
        "orca-oracle": Look(PALETTE[2], "s", (5, 1.5)),
        "orca-power2": Look(PALETTE[1], "^", (3, 1.5)),
        "orca-constant": Look(PALETTE[3], "X", (1.2, 1.2)),
    }
)
_COLUMNS = 3
_CUT_S = 1.0  # where the paper cuts its figures
_DPI = 140


def draw_paged_rates(results: Mapping[str, Any], path: Path) -> None:
    """Normalised latency over the rate, a panel each, and how many times the others' rates vLLM serves."""
    panels = results["panels"]
    rows = -(-len(panels) // _COLUMNS)
    with figure_style():
        figure = Figure(figsize=(4.2 * _COLUMNS, 2.5 * rows), layout="constrained")
        grid = [*figure.subplots(rows, _COLUMNS, squeeze=False).flat]
        for axes, panel in zip(grid, panels, strict=False):
            _draw_rates(axes, panel)
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        handles, labels = next(iter(figure.axes)).get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, handlelength=3.4)
        write_picture(figure, path, _DPI)


def _draw_rates(axes: Axes, panel: Mapping[str, Any]) -> None:
    for system, points in panel["curves"].items():
        rates, latencies = zip(*points, strict=True)
        axes.plot(rates, latencies, label=_NAMES[system], **_LOOKS[system].line)
    gains = "\n".join(f"{gain:.1f} x {_NAMES[system]}" for system, gain in panel["gains"].items())
    axes.text(0.99, 0.5, gains, transform=axes.transAxes, ha="right", va="center", fontsize=8, color=INK)
    axes.set(title=f"Fig. {panel['figure']}: {panel['title']}", xlabel="requests/s", ylabel="s per token")
    last = max(rate for points in panel["curves"].values() for rate, latency_s in points if latency_s <= _CUT_S)
    axes.set(ylim=(0, _CUT_S), xlim=(0, 1.5 * last))  # what is beyond is room for the text
    axes.spines[["top", "right"]].set_visible(False)


def draw_paged_memory(results: Mapping[str, Any], path: Path) -> None:
    """What is in the pool, how many requests are batched, and what sharing saves; rings and lines are published."""
    with figure_style():
        figure = Figure(figsize=(13, 7), layout="constrained")
        top, bottom = figure.subfigures(2, 1, squeeze=False)[:, 0]
        use, *batched = top.subplots(1, 3)
        _draw_use(use, results["use"])
        for axes, (dataset, found) in zip(batched, results["batched"].items(), strict=True):
            _draw_batched(axes, dataset, found, results["batched_published"][dataset])
        for axes, (dataset, found) in zip(bottom.subplots(1, 2), results["saving"].items(), strict=True):
            _draw_saving(axes, dataset, found, results["saving_published"].get(dataset, {}))
        for axes in figure.axes:
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(visible=False, axis="x")
        write_picture(figure, path, _DPI)


def _draw_use(axes: Axes, use: Mapping[str, Mapping[str, float]]) -> None:
    names = [_NAMES[system].replace(", ", ",\n") for system in use]
    below = np.zeros(len(use))
    colours = (PALETTE[0], PALETTE[1], PALETTE[3], tint((0.5, 0.5, 0.5)))
    for place, part in enumerate(next(iter(use.values()))):
        heights = np.array([shares[part] for shares in use.values()])
        bars = axes.bar(names, heights, bottom=below, color=colours[place], hatch=HATCHES[place], label=part, width=0.7)
        written = [f"{height:.0f}" if height > 5 else "" for height in heights]
        axes.bar_label(bars, written, label_type="center", fontsize=8, color=readable_on(colours[place]))
        below += heights
    axes.set(title="Fig. 2: the pool at 4 requests/s, ShareGPT", ylabel="% of the pool", ylim=(0, 100))
    axes.legend(frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.16))


def _draw_batched(
    axes: Axes, dataset: str, found: Mapping[str, Mapping[str, float]], published: Mapping[str, float]
) -> None:
    names = [f"{_NAMES[system]}\n{each['requests']:.1f}\n{each['kv_gb']:.1f} GiB" for system, each in found.items()]
    colours = [_LOOKS[system].colour for system in found]
    axes.bar(names, [each["requests"] for each in found.values()], color=colours, width=0.7)
    _ring(axes, names, [published[system] for system in found])
    axes.set(title=f"Fig. 13: {_DATASETS[dataset]}, OPT-13B", ylabel="requests in a batch")
    axes.legend(frameon=False)


def _draw_saving(axes: Axes, dataset: str, found: Mapping[str, float], published: Mapping[str, float]) -> None:
    names = [_sampling_name(sampling) for sampling in found]
    colours = [PALETTE[4] if "beam" in sampling else PALETTE[9] for sampling in found]
    bars = axes.bar(names, [*found.values()], color=colours, width=0.7)
    axes.bar_label(bars, [f"{share:.1f}" for share in found.values()], fontsize=8, padding=7)
    if published:
        _ring(axes, names, [published[sampling] for sampling in found])
        axes.legend(frameon=False, loc="upper left")
    axes.set(title=f"Fig. 15: {_DATASETS[dataset]}, OPT-13B", ylabel="% of the blocks saved", ylim=(0, 80))


def _ring(axes: Axes, names: Sequence[str], values: Sequence[float]) -> None:
    axes.plot(names, values, "o", markersize=9, markerfacecolor="none", markeredgecolor=INK, label="published")


def _sampling_name(sampling: str) -> str:
    number = sampling.removeprefix("n").removesuffix("-beam")
    return f"beam of {number}" if sampling.endswith("-beam") else f"{number} samples"


def draw_paged_blocks(results: Mapping[str, Any], path: Path) -> None:
    """Latency over the size of blocks, with preempted requests computed again or swapped, and what either takes."""
    sizes = results["sizes"]
    with figure_style():
        figure = Figure(figsize=(12.6, 3.4), layout="constrained")
        size, move, policy = figure.subplots(1, 3)
        for place, (dataset, latencies) in enumerate(results["latency_s"].items()):
            label = f"{_DATASETS[dataset]}, {results['loads'][dataset]:g}/s"
            size.plot(sizes, latencies, label=label, color=PALETTE[place], marker="os"[place])
        size.set(title="Fig. 18b", ylabel="s per token", yscale="log")
        for place, name in enumerate(results["moved_ms"][0]):
            times_ms = [each[name] for each in results["moved_ms"]]
            move.plot(sizes, times_ms, label=name, color=PALETTE[place], marker="os^X"[place])
        move.set(title="Fig. 19a: 256 tokens had again", ylabel="ms", ylim=(0, 150))
        policy.plot(sizes, results["latency_s"]["sharegpt"], label="computed again", color=PALETTE[0], marker="o")
        policy.plot(sizes, results["swap_latency_s"], label="swapped", color=PALETTE[1], marker="s")
        policy.set(title=f"Fig. 19b: ShareGPT, {results['loads']['sharegpt']:g}/s", ylabel="s per token", yscale="log")
        for axes in (size, move, policy):
            axes.set_xscale("log", base=2)
            axes.set_xticks(sizes, [f"{tokens}" for tokens in sizes])
            axes.xaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.set_xlabel("tokens in a block")
            axes.axvline(16, color=GREY, linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(frameon=False)
        write_picture(figure, path, _DPI)
