"""Figure 15(b): how long a request waits for its KV cache to move, control and block overhead together.

    python3 plot_kvcache_cdf.py

Writes ``kvcache_cdf.png`` and ``kvcache_cdf.pdf``, see ``plot_e2e.py`` for where.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:  # run as a script: the folder above has the packages
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from plots.curves.outcome import Distribution
from plots.curves.usage import PlotUsageError
from plots.draw.cdf import draw_cdf
from plots.draw.style import figure_style, new_figure, system_name, write_figure
from plots.options import FigureScript, add_loads, add_policy, destinations, say
from plots.read.records import read_records
from plots.read.selection import load_name, typical


def draw(options: argparse.Namespace) -> list[Path]:
    """Draw the figure, return the files."""
    curves: dict[str, Distribution] = {}
    for outcome in typical(read_records(options.json, options.measured_on), options.policy, options.loads):
        other = f", {system_name(outcome.policy)}" if outcome.policy != options.policy else ""
        name = f"{load_name(outcome.load)}{other} ({outcome.source})"
        kv_sync_s = outcome.detail().kv_sync_s
        if kv_sync_s is None:
            say(f"{name}: its records do not tell KV synchronisation; skipped")
        else:
            curves[name] = kv_sync_s
    if not curves:
        raise PlotUsageError(
            "no record tells KV synchronisation; simulate again, or replay against a server with timelines"
        )
    with figure_style():
        figure, axes = new_figure(4.7, 3.3 + 0.2 * len(curves))
        draw_cdf(axes, curves, logarithmic=True)
        axes.set_title(f"Figure 15(b): KV synchronisation of {system_name(options.policy)}")
        axes.set_xlabel("KV synchronisation of a request (s)")
        axes.set_ylabel("share of requests")
        return write_figure(figure, destinations(options.out), "kvcache_cdf")


FIGURE = FigureScript(__doc__, draw, [add_policy, add_loads])
main = FIGURE.main

if __name__ == "__main__":
    sys.exit(main())
