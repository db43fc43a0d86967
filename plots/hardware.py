"""Figure 17: one system on other hardware, a curve per SLO. ``plot_a10.py`` and ``plot_tp4.py`` are its doors."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from aegaeon.run_header import Origin
from plots.curves.curve import Curve
from plots.curves.outcome import Outcome
from plots.curves.usage import PlotUsageError
from plots.draw.attainment import draw_attainment
from plots.draw.style import LOOKS, Look, figure_style, metric_label, new_figure, system_name, write_figure
from plots.options import FigureScript, add_metric, add_policy, destinations, say
from plots.read.records import curves_of, read_artifact_runs, read_records
from sim.panels import DIGITS, Panel


@dataclass(frozen=True, slots=True)
class HardwareFigure:
    """``panels`` differ in their SLO; ``name``: of the files, and of the folder that records may lie in."""

    name: str
    panels: Sequence[Panel]

    def draw(self, options: argparse.Namespace) -> list[Path]:
        """Draw the panels into one plot, return the files. Raises ``PlotUsageError``."""
        outcomes = [each for each in self._outcomes(options) if each.policy == options.policy]
        found: list[tuple[Curve, Look]] = []
        for panel, look in zip(self.panels, LOOKS, strict=False):
            try:
                curves = curves_of(panel, outcomes, options.metric, None, say)
            except PlotUsageError as error:
                say(f"{error}; skipped")
            else:
                label = f"TTFT {panel.slo.ttft_s:g} s, TPOT {panel.slo.tpot_s:g} s"
                found += [(replace(curve, label=label), _look(look, curve)) for _, curve in curves]
        first = self.panels[0]
        if not found:
            raise PlotUsageError(f"no records of {options.policy} for {first.figure}; make them with: make figures")
        with figure_style():
            figure, axes = new_figure(4.9, 3.4 + 0.2 * len(found))
            shown, looks = [curve for curve, _ in found], [look for _, look in found]
            draw_attainment(axes, shown, looks, DIGITS[first.axis])
            axes.set_title(f"{first.figure}: {system_name(options.policy)}, {first.title}")
            axes.set_xlabel(first.x_label)
            axes.set_ylabel(metric_label(options.metric))
            return write_figure(figure, destinations(options.out), self.name)

    def _outcomes(self, options: argparse.Namespace) -> list[Outcome]:
        """The outcomes in the usual formats, and the artifact's results for this figure."""
        slos = [panel.slo for panel in self.panels]
        device = options.measured_on or self.name.upper()
        return [*read_records(options.json, options.measured_on), *read_artifact_runs(options.json, device, slos)]


def hardware_figure(name: str, panels: Sequence[Panel], description: str | None) -> FigureScript:
    """The script of the figure of that name."""
    return FigureScript(description, HardwareFigure(name, panels).draw, [add_metric, add_policy], subfolder=name)


def _look(look: Look, curve: Curve) -> Look:
    return replace(look, bold=False, hollow=curve.source.origin is Origin.MEASURED)
