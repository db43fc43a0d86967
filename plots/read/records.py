"""Finds the records in folders, real and simulated, and picks those of a panel."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from aegaeon.core.slo import Slo
from aegaeon.metrics import Metric
from aegaeon.run_header import SUMMARY_SUFFIX
from plots.curves.curve import Curve, Source
from plots.curves.outcome import Outcome
from plots.curves.usage import PlotUsageError
from plots.draw.style import system_name, system_rank
from plots.read.record_file import read_artifact_results, read_record_file
from sim.panels import BASE_SLO, Panel

NO_PLACEMENT = "no placement"

Say = Callable[[str], None]
Key = tuple[str, Source]


def read_records(directories: Sequence[Path], measured_on: str | None = None) -> list[Outcome]:
    """All outcomes that the folders hold, the newest files last; ``measured_on``: the device of real runs."""
    files = [file for directory in directories for file in directory.glob("*.json")]
    files = [file for file in files if not file.name.endswith(SUMMARY_SUFFIX)]
    files.sort(key=lambda file: (file.stat().st_mtime, file.name))
    return [outcome for file in files for outcome in read_record_file(file, measured_on)]


def read_artifact_runs(directories: Sequence[Path], device: str, slos: Sequence[Slo]) -> list[Outcome]:
    """What the artifact comes with for Figure 17, scored by each of these targets."""
    files = sorted({file for directory in directories for file in directory.glob("*.json")})
    return [outcome for file in files for outcome in read_artifact_results(file, device, slos)]


def curves_of(
    panel: Panel, outcomes: Iterable[Outcome], metric: Metric, slo: Slo | None, say: Say
) -> list[tuple[str, Curve]]:
    """(policy, curve) of each system that has records for the panel, scored by ``slo`` (None: the panel's).

    Raises ``PlotUsageError`` if there is none.
    """
    systems = _by_system(panel, outcomes)
    if not systems:
        command = " ".join(["python3 -m sim.simulate", *panel.simulate_arguments])
        raise PlotUsageError(f"no records for {panel.figure}, {panel.title}; make them with: {command}")
    ordered = sorted(systems.items(), key=lambda item: (system_rank(item[0][0]), str(item[0][1])))
    made = [(key[0], _curve(panel, key, points, metric, slo or panel.slo, say)) for key, points in ordered]
    return [(policy, curve) for policy, curve in made if curve is not None]


def bound_of(panel: Panel, outcomes: Iterable[Outcome]) -> list[tuple[float, float]]:
    """(x, load of the bound) along a panel, ascending. Raises ``PlotUsageError`` if no record has it."""
    found = {
        x: outcome.bound_load
        for outcome in outcomes
        if outcome.bound_load is not None and outcome.slo == panel.slo and (x := panel.x_of(outcome.load)) is not None
    }
    if not found:
        command = " ".join(["python3 -m sim.simulate", *panel.simulate_arguments, "--bound"])
        raise PlotUsageError(f"no record for {panel.figure} has the bound; make them with: {command}")
    return sorted(found.items())


def _by_system(panel: Panel, outcomes: Iterable[Outcome]) -> dict[Key, dict[float, Outcome]]:
    """Per system the outcome at each x: those served for the panel's targets, where there are any; later files win."""
    served: dict[Key, dict[Slo, dict[float, Outcome]]] = defaultdict(lambda: defaultdict(dict))
    for outcome in outcomes:
        x = panel.x_of(outcome.load)
        if x is not None:
            served[outcome.policy, outcome.source][outcome.slo][x] = outcome
    chosen = {key: by_slo.get(panel.slo) or by_slo.get(BASE_SLO) for key, by_slo in served.items()}
    return {key: points for key, points in chosen.items() if points}


def _curve(panel: Panel, key: Key, points: Mapping[float, Outcome], metric: Metric, slo: Slo, say: Say) -> Curve | None:
    """A system's curve; None if it took none of the loads."""
    policy, source = key
    name = f"{system_name(policy)} ({source})"
    refused = [x for x in sorted(points) if points[x].refused]
    served = [x for x in sorted(points) if not points[x].refused]
    _say_gaps(name, panel, points, slo, say)
    if not served:
        say(f"{name}: {NO_PLACEMENT} at any load; skipped")
        return None
    scored = tuple((x, points[x].score(metric, slo)) for x in served)
    return Curve(system_name(policy), source, scored, end=NO_PLACEMENT if refused and refused[-1] > served[-1] else "")


def _say_gaps(name: str, panel: Panel, points: Mapping[float, Outcome], slo: Slo, say: Say) -> None:
    """What a reader of the curve should know: points that are not there, targets that were others."""
    served_for = next(iter(points.values())).slo
    if served_for != panel.slo:
        say(f"{name}: served for {_targets(served_for)}, scored by {_targets(slo)}")
    missing = [f"{x:g}" for x in panel.xs if x not in points]
    if missing:
        say(f"{name}: no record at {', '.join(missing)} {panel.axis}; skipped")


def _targets(slo: Slo) -> str:
    return f"TTFT {slo.ttft_s:g} s and TPOT {slo.tpot_s:g} s"
