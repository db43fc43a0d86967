"""``slack`` beside ``aegaeon`` at every point of Figures 11 to 13 and 17(a): it must be below at none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sim.panels import A10_PANELS, PANELS, Panel
from sim.study.options import make_plans, make_setting, parser
from sim.study.sweep import Point, Setting, run_point

POLICIES = ("slack", "aegaeon")


@dataclass(frozen=True, slots=True)
class FigurePoint:
    """One system at one point of a panel."""

    panel: str
    point: Point
    setting: Setting

    def attainment(self) -> float:
        """Simulate it."""
        return float(run_point(self.point, self.setting).summary["slo_attainment"])


def figure_points(every: int = 1) -> list[FigurePoint]:
    """All points, or every n-th of each panel."""
    return [point for panel in (*PANELS.values(), *A10_PANELS) for point in _of_panel(panel, every)]


def _of_panel(panel: Panel, every: int) -> Iterator[FigurePoint]:
    options = parser("figures").parse_args([*panel.simulate_arguments, "--policy", *POLICIES])
    setting = make_setting(options, {})
    points = [point for plan in make_plans(options, setting.slo) for point in plan.points]
    wanted = set(sorted({point.x for point in points}, reverse=True)[::every])
    name = f"{panel.figure} {panel.title}" + (f", TPOT {panel.slo.tpot_s:g} s" if panel in A10_PANELS else "")
    return (FigurePoint(name, point, setting) for point in points if point.x in wanted)


def by_panel(points: Sequence[FigurePoint], attainments: Sequence[float]) -> dict[str, list[tuple[float, ...]]]:
    """``(x, slack, aegaeon)`` by panel."""
    found: dict[str, dict[float, dict[str, float]]] = {}
    for item, attainment in zip(points, attainments, strict=True):
        found.setdefault(item.panel, {}).setdefault(item.point.x, {})[item.point.policy] = attainment
    return {
        panel: [(x, *(scores[policy] for policy in POLICIES)) for x, scores in sorted(by_x.items())]
        for panel, by_x in found.items()
    }
