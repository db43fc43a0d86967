"""All figures from nothing: simulates every sweep, draws every figure, and writes ``plots/claims.md``.

    python3 -m plots.figures [--json DIR] [--out DIR] [--keep]

Two sets. *The paper, reproduced*: constants and systems of the SOSP'25 artifact, ``qos``, Figures 11 to 17. *What this
project does*: today's constants, ``slo_attainment``, the sweeps as far as ``slack`` goes, and the bound.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path

if not __package__:  # run as a script: the folder above has the packages
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from aegaeon.crossing import bound_crossing
from aegaeon.metrics import Metric
from aegaeon.run_header import Load
from plots import plot_a10, plot_autoscale_cdf, plot_breakdown, plot_e2e, plot_frag, plot_kvcache_cdf, plot_tp4
from plots.claims import Result, claims_page
from plots.curves.usage import PlotUsageError
from plots.options import FIGURES, PLOTS, RECORDS, FigureScript, command_line, run
from plots.read.records import bound_of, curves_of, read_records
from sim.panels import A10_PANELS, BASE_SLO, FAR_PANELS, PANELS, TP4_PANELS, Panel

BLIND = frozenset({"sllm", "sllm+", "muxserve", "dedicated"})  # to targets: one run is scored by any
MEASURED = PLOTS.parent / "benchmark" / "results"  # real runs that are part of the project
MEASURED_ON = "2-core CPU"
SWITCH_LOAD = Load(80, 0.1)
FAR_LOADS = ("64x0.1", "128x0.1", "192x0.1", "48x0.5", "128x0.5")
FAR_LOAD = ("--num-models", "192", "--arrival-rate", "0.1")


@dataclass(frozen=True, slots=True)
class FigureSet:
    """Panels that are simulated and scored alike. ``name``: of the folder of its records."""

    name: str
    panels: Mapping[str, Panel]
    policies: tuple[str, ...]
    metric: Metric
    arguments: tuple[str, ...]
    bound: bool = False

    def of_policies(self, policies: Sequence[str] | None) -> FigureSet:
        """The set with other systems, if there are some."""
        return replace(self, policies=tuple(policies)) if policies else self

    def sweeps(self, records: Path) -> list[Sweep]:
        """Everything that its figures show."""
        chosen = {
            spec: [policy for policy in self.policies if panel.slo == BASE_SLO or policy not in BLIND]
            for spec, panel in self.panels.items()
        }
        return [
            Sweep.of(self.panels[spec], names, records / self.name, self.arguments)
            for spec, names in chosen.items()
            if names
        ]

    def results(self, records: Path) -> list[Result]:
        """The curves of all panels. Raises ``PlotUsageError`` where one has no records."""
        outcomes = read_records([records / self.name])
        return [
            Result.of(
                panel,
                curves_of(panel, outcomes, self.metric, None, lambda _: None),
                bound_crossing(bound_of(panel, outcomes)) if self.bound else None,
            )
            for panel in self.panels.values()
        ]

    def missing(self, records: Path) -> list[str]:
        """Points without a record. Raises ``PlotUsageError`` where a whole panel has none."""
        outcomes = read_records([records / self.name])
        for panel in self.panels.values():
            if all(panel.x_of(outcome.load) is None for outcome in outcomes):
                raise PlotUsageError(
                    f"no records for {panel.figure}, {panel.title} in {records / self.name}; omit --keep"
                )
        there = {(outcome.policy, outcome.load, outcome.slo) for outcome in outcomes}
        return [
            f"{policy} at {x:g}, {panel.title}"
            for panel in self.panels.values()
            for policy in self.policies
            for x, load in zip(panel.xs, panel.loads, strict=True)
            if not {(policy, load, slo) for slo in (panel.slo, *([BASE_SLO] if policy in BLIND else []))} & there
        ]


PAPER = FigureSet(
    "paper", PANELS, ("aegaeon", "sllm", "sllm+", "muxserve"), Metric.QOS, ("--compat", "artifact", "--seed", "0")
)
FAR = FigureSet(
    "far",
    FAR_PANELS,
    ("slack", "aegaeon", "sllm", "sllm+", "muxserve"),
    Metric.SLO_ATTAINMENT,
    ("--bound",),
    bound=True,
)
ERROR_LINES = 12  # of a sweep that failed
SOME_POINTS = 3  # of those that are missing


@dataclass(frozen=True, slots=True)
class Sweep:
    """One call of the simulator, on one core. ``weight`` grows with the time that it takes."""

    arguments: tuple[str, ...]
    weight: float

    @classmethod
    def of(cls, panel: Panel, policies: Sequence[str], out: Path, more: Sequence[str]) -> Sweep:
        """The points of a panel for some systems."""
        where = ("--policy", *policies, "--out", str(out.resolve()), "--workers", "1")
        return cls((*panel.simulate_arguments, *more, *where), sum(map(panel.requests_per_s, panel.xs)) * len(policies))

    def run(self) -> None:
        """Raises ``PlotUsageError`` with the simulator's own words if it fails."""
        command = [sys.executable, "-m", "sim.simulate", *self.arguments]
        done = subprocess.run(command, cwd=PLOTS.parent, capture_output=True, text=True, check=False)
        if done.returncode:
            said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-ERROR_LINES:])
            raise PlotUsageError(f"{' '.join(command)}\nended with status {done.returncode}:\n{said}")


@dataclass(frozen=True, slots=True)
class Drawing:
    """One figure: its script, and what the script is told."""

    script: FigureScript
    arguments: tuple[str, ...]

    def draw(self) -> None:
        """Raises ``PlotUsageError`` if there is nothing to draw."""
        self.script.draw(self.script.options().parse_args(self.arguments))


def sweeps(records: Path, sets: Sequence[FigureSet]) -> list[Sweep]:
    """Everything that the figures show; Figure 17 is of Aegaeon alone, with today's constants."""
    hardware = [(panel, records / panel.spec) for panel in (*A10_PANELS, *TP4_PANELS)]
    return [
        *(sweep for one in sets for sweep in one.sweeps(records)),
        *(Sweep.of(panel, ("aegaeon",), folder, ("--seed", "0")) for panel, folder in hardware),
    ]


def drawings(records: Path, out: Path, paper: FigureSet = PAPER, far: FigureSet = FAR) -> list[Drawing]:
    """Every figure."""
    return [*_far_drawings(far, records / far.name, out), *_paper_drawings(paper, records, out / paper.name)]


def _far_drawings(far: FigureSet, records: Path, out: Path) -> Iterator[Drawing]:
    places = ("--json", str(records), "--out", str(out))
    for spec in far.panels:
        yield Drawing(plot_e2e.FIGURE, ("--spec", spec, "--far", "--bound", "--metric", far.metric, *places))
    first = ("--policy", far.policies[0], *places)
    yield Drawing(plot_breakdown.FIGURE, ("--loads", *FAR_LOADS, *first))
    yield Drawing(plot_kvcache_cdf.FIGURE, ("--loads", *FAR_LOADS, *first))
    yield Drawing(plot_autoscale_cdf.FIGURE, (*FAR_LOAD, *first))
    yield Drawing(plot_frag.FIGURE, (*FAR_LOAD, *first))


def _paper_drawings(paper: FigureSet, records: Path, out: Path) -> Iterator[Drawing]:
    metric = ("--metric", paper.metric, "--out", str(out))
    simulated = str(records / paper.name)
    for spec in paper.panels:
        yield Drawing(plot_e2e.FIGURE, ("--spec", spec, "--json", simulated, *metric))
    yield Drawing(plot_a10.FIGURE, ("--json", str(records / "a10"), *metric))
    yield Drawing(plot_tp4.FIGURE, ("--json", str(records / "tp4"), *metric))
    first = ("--policy", paper.policies[0], "--out", str(out))
    for script in (plot_autoscale_cdf, plot_frag):
        yield Drawing(script.FIGURE, ("--json", simulated, *first))
    for script in (plot_breakdown, plot_kvcache_cdf):
        yield Drawing(script.FIGURE, ("--json", simulated, str(MEASURED), "--measured-on", MEASURED_ON, *first))


def write_claims(records: Path, page: Path, paper: FigureSet = PAPER, far: FigureSet = FAR) -> None:
    """Our crossing points beside the published claims, and how far this project goes."""
    results = {paper.metric: paper.results(records)}
    outcomes = read_records([records / paper.name])
    switch_s = {o.policy: o.detail().switch_s for o in outcomes if o.load == SWITCH_LOAD and o.slo == BASE_SLO}
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(claims_page(results, switch_s, far.results(records)), encoding="utf-8")


def simulate(jobs: Sequence[Sweep], progress: Progress) -> None:
    """Run the sweeps on all cores, the longest first. Raises ``PlotUsageError`` for the first that fails."""
    task = progress.add_task("simulating", total=len(jobs))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        running = [pool.submit(job.run) for job in sorted(jobs, key=lambda job: -job.weight)]
        try:
            for done in as_completed(running):
                done.result()
                progress.advance(task)
        finally:
            pool.shutdown(cancel_futures=True)


def make(options: argparse.Namespace) -> list[Path]:
    """Simulate, draw, write; the page of claims. Raises ``PlotUsageError``."""
    began_s, console = time.monotonic(), Console(highlight=False)
    sets = [one.of_policies(options.policy) for one in (PAPER, FAR)]
    out = options.out or (PLOTS / "out" if options.policy else FIGURES)
    claims = options.claims or (out if options.policy else PLOTS) / "claims.md"
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        if not options.keep:
            simulate(sweeps(options.json, sets), progress)
        for one in sets:
            _require_all(one, options.json)
        simulated_s = time.monotonic() - began_s
        for drawing in progress.track(drawings(options.json, out, *sets), description="drawing"):
            drawing.draw()
    write_claims(options.json, claims, *sets)
    console.print(f"figures in {out}; simulated in {simulated_s:.0f} s, all in {time.monotonic() - began_s:.0f} s")
    return [claims]


def _require_all(one: FigureSet, records: Path) -> None:
    """A figure of the project never shows a part of its sweep. Raises ``PlotUsageError``."""
    missing = one.missing(records)
    if missing:
        some = "; ".join(missing[:SOME_POINTS])
        raise PlotUsageError(
            f"no record in {records / one.name} for {len(missing)} points, such as {some}; omit --keep, or draw "
            "what there is with plot_e2e.py"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status."""
    options = command_line(__doc__)
    options.add_argument("--json", type=Path, default=RECORDS, metavar="DIR", help="where records go and come from")
    options.add_argument("--out", type=Path, metavar="DIR", help="where figures go, default plots/figures")
    options.add_argument("--claims", type=Path, metavar="FILE", help="the page of claims, default plots/claims.md")
    options.add_argument(
        "--policy", nargs="+", metavar="NAME", help="compare these systems instead; figures then go to plots/out"
    )
    options.add_argument("--keep", action="store_true", help="draw the records that are there, simulate nothing")
    return run(make, options.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
