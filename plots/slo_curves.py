"""The two panels of Figure 17: one system on other hardware, a curve per SLO.

Does not know: which hardware, how records are found and read.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from plots.attainment import draw_attainment
from plots.curve import Curve, Origin
from plots.options import destinations, say
from plots.outcome import Outcome
from plots.panel import DIGITS, Panel
from plots.records import curves_of, read_artifact_runs, read_records
from plots.style import LOOKS, Look, figure_style, metric_label, new_figure, system_name, write_figure
from plots.usage import PlotUsageError


def draw_slo_curves(panels: Sequence[Panel], options: argparse.Namespace, name: str) -> list[Path]:
    """Draw the panels, which differ in their SLO, into one plot; return the files. Raises ``PlotUsageError``."""
    outcomes = [outcome for outcome in _outcomes(panels, options, name) if outcome.policy == options.policy]
    found: list[tuple[Curve, Look]] = []
    for panel, look in zip(panels, LOOKS, strict=False):
        try:
            curves = curves_of(panel, outcomes, options.metric, None, say)
        except PlotUsageError as error:
            say(f"{error}; skipped")
        else:
            label = f"TTFT {panel.slo.ttft_s:g} s, TPOT {panel.slo.tpot_s:g} s"
            found += [(replace(curve, label=label), _look(look, curve)) for _, curve in curves]
    if not found:
        raise PlotUsageError(f"no records of {options.policy} for {panels[0].figure}; make them with: make figures")
    with figure_style():
        figure, axes = new_figure(4.9, 3.4 + 0.2 * len(found))
        shown, looks = [curve for curve, _ in found], [look for _, look in found]
        draw_attainment(axes, shown, looks, DIGITS[panels[0].axis])
        axes.set_title(f"{panels[0].figure}: {system_name(options.policy)}, {panels[0].title}")
        axes.set_xlabel(panels[0].x_label)
        axes.set_ylabel(metric_label(options.metric))
        return write_figure(figure, destinations(options.out), name)


def _outcomes(panels: Sequence[Panel], options: argparse.Namespace, name: str) -> list[Outcome]:
    """Those in the usual formats, and the artifact's results for this figure."""
    slos = [panel.slo for panel in panels]
    device = options.measured_on or name.upper()
    return [*read_records(options.json, options.measured_on), *read_artifact_runs(options.json, device, slos)]


def _look(look: Look, curve: Curve) -> Look:
    return replace(look, bold=False, hollow=curve.source.origin is Origin.MEASURED)
