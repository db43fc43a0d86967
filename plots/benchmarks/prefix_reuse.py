"""KV that is kept: hit rates over the size of the cache by policy, and a market with agents with and without it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from plots.draw.style import GREY, INK, LOOKS, figure_style, write_picture

_EVICTIONS = ("lru", "lfu", "slo", "flop")  # in the order of the looks, whichever are there
_OFF = "off"


def draw_prefix_reuse(results: Mapping[str, Any], path: Path) -> None:
    """A panel for each trace, and one for the market where there is one."""
    caches, market = results.get("caches", ()), results.get("market")
    panels = len(caches) + (market is not None)
    with figure_style():
        figure = Figure(figsize=(4.3 * panels, 3.5), layout="constrained")
        axes = figure.subplots(1, panels, squeeze=False)[0]
        for place, cache in enumerate(caches):
            _draw_cache(axes[place], cache)
        if market is not None:
            _draw_market(axes[-1], market)
        for each in axes:
            each.spines[["top", "right"]].set_visible(False)
            each.legend(frameon=False, loc="lower right" if each is not axes[-1] or market is None else "lower left")
        write_picture(figure, path, dpi=160)


def _draw_cache(axes: Axes, cache: Mapping[str, Any]) -> None:
    unlimited = cache["unlimited"]
    for policy, points in cache["curves"].items():
        look = LOOKS[_EVICTIONS.index(policy) if policy in _EVICTIONS else -1]
        sizes = [point["cache_bytes"] / 1e9 for point in points]
        axes.plot(sizes, [100 * point["hit_rate"] for point in points], label=policy, **look.line)
    most = 100 * unlimited["hit_rate"]
    axes.axhline(most, color=INK, linestyle="--", linewidth=1)
    note = f"without a limit: {most:.1f} %, {unlimited['cache_bytes'] / 1e9:,.0f} GB"
    axes.annotate(note, (0.02, most), xycoords=("axes fraction", "data"), xytext=(0, 3), textcoords="offset points")
    axes.set(title=f"{cache['name']}\n{cache['requests']:,} requests", xlabel=f"cache (GB of {cache['model']} KV)")
    axes.set(xscale="log", ylim=(0, 1.15 * most), ylabel="prompt tokens found (%)")
    ticks = [point["cache_bytes"] / 1e9 for point in next(iter(cache["curves"].values()))]
    axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    axes.set_xticks([], minor=True)


def _draw_market(axes: Axes, market: Mapping[str, Any]) -> None:
    for place, (policy, points) in enumerate(_reuse_first(market["curves"])):
        name = "without reuse" if policy == _OFF else f"with reuse ({policy})"
        models = [point["models"] for point in points]
        label = f"{name}: {market['crossings'][policy]} at 90 %"
        axes.plot(models, [100 * point["slo_attainment"] for point in points], label=label, **LOOKS[place].line)
    axes.axhline(90, color=GREY, linewidth=0.6)
    title = f"agents on {market['devices']}: {market['ratio']} times the models"
    axes.set(title=title, xlabel="models", ylabel="tokens on time (%)", ylim=(0, 103), xlim=(0, None))


def _reuse_first(curves: Mapping[str, Sequence[Any]]) -> list[tuple[str, Sequence[Any]]]:
    return sorted(curves.items(), key=lambda curve: curve[0] == _OFF)
