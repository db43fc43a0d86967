"""Figures 11 to 13: attainment of each system as models or rates grow.

    python3 plot_e2e.py --spec 0.1
    python3 plot_e2e.py --spec 0.1 --far --json json/far

Writes ``<spec>.png`` and ``<spec>.pdf`` into ``plots/out``, and the PDF beside this script, where the artifact has it;
with ``--out`` only there.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:  # run as a script: the folder above has the packages
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from aegaeon.run_header import Origin
from plots.curves.usage import PlotUsageError
from plots.draw.attainment import draw_attainment, draw_bound
from plots.draw.style import figure_style, metric_label, new_figure, system_look, write_figure
from plots.options import FigureScript, add_metric, add_slo, destinations, say
from plots.read.records import bound_of, curves_of, read_records
from sim.panels import DIGITS, FAR_PANELS, PANELS


def draw(options: argparse.Namespace) -> list[Path]:
    """Draw one panel, return the files."""
    if options.far and options.spec not in FAR_PANELS:
        raise PlotUsageError(f"--far is there for {', '.join(FAR_PANELS)}")
    panel = (FAR_PANELS if options.far else PANELS)[options.spec]
    records = read_records(options.json, options.measured_on)
    found = curves_of(panel, records, options.metric, options.slo, say)
    bound = bound_of(panel, records) if options.bound else []
    with figure_style():
        figure, axes = new_figure(4.7, 3.4 + 0.2 * len(found))
        if panel.log:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.xaxis.set_minor_locator(NullLocator())
        looks = [system_look(policy, curve.source.origin is Origin.MEASURED) for policy, curve in found]
        draw_attainment(axes, [curve for _, curve in found], looks, DIGITS[panel.axis])
        if bound:
            draw_bound(axes, bound, DIGITS[panel.axis])
        axes.set_title(f"{panel.figure}: {panel.title}")
        axes.set_xlabel(panel.x_label)
        axes.set_ylabel(metric_label(options.metric))
        return write_figure(figure, destinations(options.out), panel.spec)


def add_panel(options: argparse.ArgumentParser) -> None:
    """The options that choose what is drawn."""
    options.add_argument("--spec", required=True, choices=list(PANELS), help="the panel")
    options.add_argument(
        "--far", action="store_true", help="the sweep that goes as far as this project, not the paper's"
    )
    options.add_argument("--bound", action="store_true", help="also where no policy can keep every deadline")


FIGURE = FigureScript(__doc__, draw, [add_panel, add_metric, add_slo])
main = FIGURE.main

if __name__ == "__main__":
    sys.exit(main())
