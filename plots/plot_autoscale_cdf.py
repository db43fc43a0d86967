"""Figure 15(a): how long a switch of models takes, by model.

    python3 plot_autoscale_cdf.py [--num-models 32 --arrival-rate 0.1]

Writes ``autoscale_cdf.png`` and ``autoscale_cdf.pdf``, see ``plot_e2e.py`` for where.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:  # run as a script: the folder above has the packages
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from plots.curves.usage import PlotUsageError
from plots.draw.cdf import draw_cdf
from plots.draw.style import figure_style, model_name, new_figure, system_name, write_figure
from plots.options import FigureScript, add_load, chosen_load, destinations
from plots.read.records import read_records
from plots.read.selection import at_load, load_name


def draw(options: argparse.Namespace) -> list[Path]:
    """Draw the figure, return the files."""
    outcome = at_load(read_records(options.json, options.measured_on), options.policy, chosen_load(options))
    load = outcome.load
    fastest_first = sorted(outcome.detail().switch_s.items(), key=lambda item: item[1].mean)
    switch_s = {model_name(kind): times_s for kind, times_s in fastest_first}
    if not switch_s:
        raise PlotUsageError(f"the records of {load_name(load)} ({outcome.source}) do not tell switch times")
    with figure_style():
        figure, axes = new_figure(4.7, 3.3 + 0.2 * len(switch_s))
        draw_cdf(axes, switch_s)
        axes.set_title(f"Figure 15(a): switches of {system_name(options.policy)}\n{load_name(load)}, {outcome.source}")
        axes.set_xlabel("time that a switch keeps a turn waiting (s)")
        axes.set_ylabel("share of switches")
        return write_figure(figure, destinations(options.out), "autoscale_cdf")


FIGURE = FigureScript(__doc__, draw, [add_load])
main = FIGURE.main

if __name__ == "__main__":
    sys.exit(main())
