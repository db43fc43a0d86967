"""Figure 14: where a request's time goes, the six parts of its latency, at growing loads.

    python3 plot_breakdown.py

A switch of models counts to the wait it happens in. Writes ``latency_breakdown.png`` and ``.pdf``, see ``plot_e2e.py``
for where.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import astuple
from pathlib import Path

if not __package__:  # run as a script: the folder above has the packages
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from plots.curves.outcome import Outcome
from plots.curves.usage import PlotUsageError
from plots.draw.bars import Part, draw_shares
from plots.draw.cdf import duration
from plots.draw.style import PALETTE, figure_style, new_figure, system_name, tint, write_figure
from plots.options import FigureScript, add_loads, add_policy, destinations, say
from plots.read.records import read_records
from plots.read.selection import load_name, typical

PARTS = (  # in the order of LatencyParts
    Part("waiting for prefill", tint(PALETTE[0])),
    Part("prefill", PALETTE[0]),
    Part("waiting for decode", tint(PALETTE[1])),
    Part("decode", PALETTE[1]),
    Part("control", PALETTE[2]),
    Part("KV blocks", PALETTE[3]),
)


def draw(options: argparse.Namespace) -> list[Path]:
    """Draw the figure, return the files."""
    bars: dict[str, list[float]] = {}
    for outcome in typical(read_records(options.json, options.measured_on), options.policy, options.loads):
        parts = outcome.detail().parts
        if parts is None:
            say(f"{_row_name(outcome, options.policy)}: its records have no latency parts; skipped")
        else:
            bars[_row_name(outcome, options.policy)] = list(astuple(parts))
    if not bars:
        raise PlotUsageError(
            "no record has latency parts; simulate again, or replay against a server that tells timelines"
        )
    with figure_style():
        figure, axes = new_figure(6.6, 1.5 + 0.42 * len(bars))
        draw_shares(axes, bars, PARTS, remarks=[duration(sum(parts)) for parts in bars.values()])
        axes.set_title(f"Figure 14: where a request's time goes, {system_name(options.policy)}")
        axes.set_xlabel("share of a request's latency, mean over requests (mean latency at the right)")
        return write_figure(figure, destinations(options.out), "latency_breakdown")


def _row_name(outcome: Outcome, policy: str) -> str:
    """A real run of another policy says so."""
    other = f", {system_name(outcome.policy)}" if outcome.policy != policy else ""
    return f"{load_name(outcome.load)}{other}\n{outcome.source}"


FIGURE = FigureScript(__doc__, draw, [add_policy, add_loads])
main = FIGURE.main

if __name__ == "__main__":
    sys.exit(main())
