"""Figure 16: how much of the host KV cache's slabs is used, per block shape and over all.

    python3 plot_frag.py [--num-models 32 --arrival-rate 0.1]

A slab serves one block shape at a time; what its blocks do not use is fragmented. Writes ``frag.png`` and ``frag.pdf``,
see ``plot_e2e.py`` for where.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

if not __package__:  # run as a script: the folder above has the packages
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from plots.curves.outcome import SlabUse
from plots.curves.usage import PlotUsageError
from plots.draw.bars import Part, draw_shares
from plots.draw.style import PALETTE, figure_style, new_figure, system_name, write_figure
from plots.options import FigureScript, add_load, chosen_load, destinations
from plots.read.records import read_records
from plots.read.selection import at_load, load_name

PARTS = (Part("used", PALETTE[0]), Part("fragmented", PALETTE[1]))
GIB = 1 << 30


def draw(options: argparse.Namespace) -> list[Path]:
    """Draw the figure, return the files."""
    outcome = at_load(read_records(options.json, options.measured_on), options.policy, chosen_load(options))
    load = outcome.load
    slabs = outcome.detail().slabs
    if not slabs:
        raise PlotUsageError(f"the records of {load_name(load)} ({outcome.source}) do not tell the use of slabs")
    rows = {**slabs, "over all": _sum(slabs)}
    with figure_style():
        figure, axes = new_figure(6.2, 1.5 + 0.42 * len(rows))
        bars = {shape: (use.used_bytes, use.assigned_bytes - use.used_bytes) for shape, use in rows.items()}
        draw_shares(axes, bars, PARTS, remarks=[f"{use.assigned_bytes / GIB:.1f} GiB" for use in rows.values()])
        axes.set_title(f"Figure 16: slabs of {system_name(options.policy)}\n{load_name(load)}, {outcome.source}")
        axes.set_ylabel("layers x block of a layer\n(K and V, tokens, heads, head size)", fontsize=8.5)
        axes.set_xlabel("share of the slabs' bytes, mean over time (mean size at the right)")
        return write_figure(figure, destinations(options.out), "frag")


def _sum(slabs: Mapping[str, SlabUse]) -> SlabUse:
    return SlabUse(sum(use.assigned_bytes for use in slabs.values()), sum(use.used_bytes for use in slabs.values()))


FIGURE = FigureScript(__doc__, draw, [add_load])
main = FIGURE.main

if __name__ == "__main__":
    sys.exit(main())
