"""All figures from nothing: simulates every sweep, draws every figure, and writes ``plots/claims.md``.

    python3 -m plots.figures [--json DIR] [--out DIR] [--keep]

Does not know: how anything is simulated or drawn.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

if not __package__:  # run as a script: the folder above has the packages
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from plots import plot_a10, plot_autoscale_cdf, plot_breakdown, plot_e2e, plot_frag, plot_kvcache_cdf, plot_tp4
from plots.claims import Result, claims_page
from plots.options import FIGURES, PLOTS, RECORDS, command_line, say
from plots.outcome import Load
from plots.panel import A10_PANELS, BASE_SLO, PANELS, TP4_PANELS, Panel
from plots.records import curves_of, read_records
from plots.token_gaps import Metric
from plots.usage import UsageError

POLICIES = ("aegaeon", "sllm", "sllm+", "muxserve")
BLIND = frozenset({"sllm", "sllm+", "muxserve", "dedicated"})  # to targets: one run is scored by any
MEASURED = PLOTS.parent / "benchmark" / "results"  # real runs that are part of the project
MEASURED_ON = "2-core CPU"
SWITCH_LOAD = Load(80, 0.1)
ERROR_LINES = 12  # of a sweep that failed


@dataclass(frozen=True, slots=True)
class Sweep:
    """One call of the simulator, on one core. ``weight`` grows with the time that it takes."""

    arguments: tuple[str, ...]
    weight: float

    @classmethod
    def of(cls, panel: Panel, policies: Sequence[str], out: Path) -> Sweep:
        """The points of a panel for some systems."""
        where = ("--policy", *policies, "--out", str(out.resolve()), "--workers", "1")
        return cls((*panel.simulate_arguments, *where), sum(map(panel.requests_per_s, panel.xs)) * len(policies))

    def run(self) -> None:
        """Raises ``UsageError`` with the simulator's own words if it fails."""
        command = [sys.executable, "-m", "sim.simulate", *self.arguments]
        done = subprocess.run(command, cwd=PLOTS.parent, capture_output=True, text=True, check=False)
        if done.returncode:
            said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-ERROR_LINES:])
            raise UsageError(f"{' '.join(command)}\nended with status {done.returncode}:\n{said}")


@dataclass(frozen=True, slots=True)
class Drawing:
    """One figure: its script, and what the script is told."""

    script: ModuleType
    arguments: tuple[str, ...]

    def draw(self) -> None:
        """Raises ``UsageError`` if there is nothing to draw."""
        self.script.draw(self.script.options().parse_args(self.arguments))


def sweeps(records: Path, policies: Sequence[str]) -> list[Sweep]:
    """Everything that the figures show; Figure 17 is of Aegaeon alone."""
    chosen = {
        spec: [policy for policy in policies if panel.slo == BASE_SLO or policy not in BLIND]
        for spec, panel in PANELS.items()
    }
    return [
        *(Sweep.of(PANELS[spec], names, records) for spec, names in chosen.items() if names),
        *(Sweep.of(panel, POLICIES[:1], records / panel.spec) for panel in (*A10_PANELS, *TP4_PANELS)),
    ]


def drawings(records: Path, out: Path) -> list[Drawing]:
    """Every figure; attainment by both metrics, ``qos`` in a folder of its own."""
    made = []
    for metric, folder in ((Metric.SLO_ATTAINMENT, out), (Metric.QOS, out / "qos")):
        by_metric = ["--out", str(folder), "--metric", metric]
        made += [Drawing(plot_e2e, ("--spec", spec, "--json", str(records), *by_metric)) for spec in PANELS]
        made += [Drawing(plot_a10, ("--json", str(records / "a10"), *by_metric))]
        made += [Drawing(plot_tp4, ("--json", str(records / "tp4"), *by_metric))]
    made += [Drawing(script, ("--json", str(records), "--out", str(out))) for script in (plot_autoscale_cdf, plot_frag)]
    both = ("--json", str(records), str(MEASURED), "--measured-on", MEASURED_ON, "--out", str(out))
    return [*made, Drawing(plot_breakdown, both), Drawing(plot_kvcache_cdf, both)]


def write_claims(records: Path, page: Path) -> None:
    """Our crossing points beside the published claims."""
    outcomes = read_records([records])
    results = {
        metric: [
            Result.of(panel, curves_of(panel, outcomes, metric, None, lambda _: None)) for panel in PANELS.values()
        ]
        for metric in Metric
    }
    page.parent.mkdir(parents=True, exist_ok=True)
    switch_s = {o.policy: o.detail().switch_s for o in outcomes if o.load == SWITCH_LOAD and o.slo == BASE_SLO}
    page.write_text(claims_page(results, switch_s), encoding="utf-8")


def simulate(jobs: Sequence[Sweep], progress: Progress) -> None:
    """Run the sweeps on all cores, the longest first. Raises ``UsageError`` for the first that fails."""
    task = progress.add_task("simulating", total=len(jobs))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        running = [pool.submit(job.run) for job in sorted(jobs, key=lambda job: -job.weight)]
        try:
            for done in as_completed(running):
                done.result()
                progress.advance(task)
        finally:
            pool.shutdown(cancel_futures=True)


def make(options: argparse.Namespace, console: Console) -> None:
    """Simulate, draw, write. Raises ``UsageError``."""
    began_s = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        if not options.keep:
            simulate(sweeps(options.json, options.policy), progress)
        simulated_s = time.monotonic() - began_s
        for drawing in progress.track(drawings(options.json, options.out), description="drawing"):
            drawing.draw()
    write_claims(options.json, options.claims)
    console.print(f"{options.claims} and the figures in {options.out}")
    console.print(f"simulated in {simulated_s:.0f} s, all in {time.monotonic() - began_s:.0f} s")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status."""
    options = command_line(__doc__)
    options.add_argument("--json", type=Path, default=RECORDS, metavar="DIR", help="where records go and come from")
    options.add_argument("--out", type=Path, default=FIGURES, metavar="DIR", help="where figures go")
    options.add_argument("--claims", type=Path, default=PLOTS / "claims.md", metavar="FILE", help="the page of claims")
    options.add_argument("--policy", nargs="+", default=POLICIES, metavar="NAME", help="systems that are compared")
    options.add_argument("--keep", action="store_true", help="draw the records that are there, simulate nothing")
    try:
        make(options.parse_args(arguments), Console(highlight=False))
    except UsageError as error:
        say(f"error: {error}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
