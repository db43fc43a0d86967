"""The simulator itself: against the artifact's published numbers, its speed, and how it scales.

python3 -m benchmark.simulator published [--traces DIR]     qos beside the artifact's own, in its semantics
python3 -m benchmark.simulator speed                        events, requests and tokens per second, by system
python3 -m benchmark.simulator scale [--requests N ...]     1,000 models on 50 nodes of 8 devices; memory
python3 -m benchmark.simulator panels                       every point of Figures 11 to 13, four systems
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from aegaeon.cli.terminal.console import make_console
from aegaeon.latency.files.profile_book import ProfileBook
from aegaeon.latency.files.shipped import shipped_profiles
from aegaeon.scheduler.layout import NoPlacementError
from aegaeon.workload import SyntheticSpec, default_lengths, read_trace, synthesize
from benchmark.command.errors import BenchmarkUsageError
from benchmark.command.main import count, run_measuring
from benchmark.command.result_file import ROOT
from sim.panels import PANELS
from sim.records.tally import Tally
from sim.study.hardware import Hardware, HardwareOptions, make_hardware
from sim.study.run import RunResult, simulate
from sim.study.scenario import Scenario, make_scenario
from sim.systems.systems import DEFAULT_SYSTEMS, PAPER_SYSTEMS, SYSTEMS, find_system

ALL_MODELS_BYTES = 20 * 10**12
TRACES = ROOT.parent / "shared" / "data" / "traces" / "aegaeon_synth_scale1.0-1.0.tar.gz"

# qos of Aegaeon and ServerlessLLM in the SOSP'25 artifact's simulator on its published workloads.
PUBLISHED: Mapping[str, tuple[float, float]] = {
    "16-0.1": (1.000, 1.000),
    "32-0.1": (1.000, 0.925),
    "48-0.1": (0.998, 0.825),
    "64-0.1": (0.962, 0.610),
    "72-0.1": (0.911, 0.535),
    "80-0.1": (0.881, 0.485),
    "16-0.5": (1.000, 0.969),
    "32-0.5": (0.995, 0.348),
    "48-0.5": (0.903, 0.216),
}


def published(options: argparse.Namespace, console: Console) -> int:
    """Exit status 1 where a point is more than two points off."""
    if not options.traces.exists():
        raise BenchmarkUsageError(f"{options.traces} is not there: give the published workloads with --traces")
    table = _table("qos in the artifact's semantics, and the artifact's own", "workload", *("aegaeon", "sllm") * 2)
    table.columns[3].header, table.columns[4].header = "aegaeon, off by", "sllm, off by"
    book = ProfileBook.open(shipped_profiles() / "artifact")
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["tar", "xzf", options.traces, "-C", folder], check=True)
        for label, targets in PUBLISHED.items():
            arrivals = read_trace(Path(folder) / f"synth-{label}-1.0-1.0.csv")
            scenario = make_scenario(arrivals, label, book, "h100")
            values = [_qos(name, scenario) for name in ("aegaeon", "sllm")]
            errors = [100 * (value - target) for value, target in zip(values, targets, strict=True)]
            worst = max(worst, *map(abs, errors))
            table.add_row(label, *(f"{value:.3f}" for value in values), *(f"{error:+.1f} points" for error in errors))
    console.print(table)
    return int(worst > 2.0)


def _qos(name: str, scenario: Scenario) -> float:
    hardware = make_hardware(HardwareOptions(artifact=True), scenario.tp)
    return float(simulate(find_system(name, artifact=True), scenario, hardware).summary["qos"])


def speed(options: argparse.Namespace, console: Console) -> int:
    """One process."""
    table = _table("speed, one process", "workload", "system", "seconds", "events/s", "requests/s", "tokens/s")
    for models, rate_per_s in ((40, 0.1), (80, 0.1), (54, 0.5)):
        scenario = _synthetic(models, rate_per_s, 120.0 if rate_per_s <= 0.1 else 60.0)
        hardware = make_hardware(HardwareOptions(), scenario.tp)
        for name in DEFAULT_SYSTEMS:
            try:
                seconds, result = _timed(name, scenario, hardware, Tally())
            except NoPlacementError:
                continue
            counts = [result.summary[key] / seconds for key in ("events", "requests", "tokens")]
            table.add_row(f"{models} x {rate_per_s}", name, f"{seconds:.2f}", *(f"{count:,.0f}" for count in counts))
    console.print(table)
    return 0


def scale(options: argparse.Namespace, console: Console) -> int:
    """1,000 models at 0.1 requests/s on 400 devices in 50 nodes whose host memory holds all, longer and longer."""
    headings = ("requests", "virtual time (s)", "seconds", "events/s", "tokens/s", "slo_attainment", "peak memory")
    table = _table(f"1,000 models, 400 x h100 in 50 nodes, {options.policy}, one process", *headings)
    for requests in options.requests:
        scenario = _synthetic(1000, 0.1, requests / 100.0)
        hardware = make_hardware(
            HardwareOptions(devices=("h100",) * 400, nodes=50, host_memory_bytes=ALL_MODELS_BYTES), scenario.tp
        )
        seconds, result = _timed(options.policy, scenario, hardware, Tally(keep_text=False))
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        summary = result.summary
        table.add_row(
            f"{summary['requests']:,}",
            f"{summary['makespan_s']:,.0f}",
            f"{seconds:.1f}",
            f"{summary['events'] / seconds:,.0f}",
            f"{summary['tokens'] / seconds:,.0f}",
            f"{summary['slo_attainment']:.3f}",
            f"{peak_bytes / 1e9:.2f} GB",
        )
    console.print(table)
    return 0


def panels(options: argparse.Namespace, console: Console) -> int:
    """All panels as a user would run them: one command each, on all cores."""
    table = _table(
        f"Figures 11 to 13, {', '.join(PAPER_SYSTEMS)}, {os.cpu_count()} cores", "sweep", "seconds", "CPU seconds"
    )
    total_s, total_cpu_s = 0.0, _children_cpu_s()
    with tempfile.TemporaryDirectory() as folder:
        for arguments in (panel.simulate_arguments for panel in PANELS.values()):
            command = [sys.executable, "-m", "sim.simulate", *arguments, "--policy", *PAPER_SYSTEMS, "--out", folder]
            began_s, began_cpu_s = time.perf_counter(), _children_cpu_s()
            subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
            seconds = time.perf_counter() - began_s
            total_s += seconds
            table.add_row(" ".join(arguments), f"{seconds:.1f}", f"{_children_cpu_s() - began_cpu_s:.1f}")
    table.add_row("all", f"{total_s:.1f}", f"{_children_cpu_s() - total_cpu_s:.1f}")
    console.print(table)
    return 0


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _synthetic(models: int, rate_per_s: float, duration_s: float) -> Scenario:
    spec = SyntheticSpec(models, rate_per_s, duration_s)
    arrivals = synthesize(spec, default_lengths({}))
    return make_scenario(arrivals, "generated", ProfileBook.open(shipped_profiles()), "h100")


def _timed(policy: str, scenario: Scenario, hardware: Hardware, tally: Tally) -> tuple[float, RunResult]:
    began_s = time.perf_counter()
    result = simulate(find_system(policy), scenario, hardware, tally)
    return time.perf_counter() - began_s, result


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False)
    table.add_column(first)
    for heading in others:
        table.add_column(heading, justify="right")
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    commands.add_parser("published").add_argument("--traces", type=Path, default=TRACES, metavar="TAR")
    commands.add_parser("speed")
    scaling = commands.add_parser("scale")
    scaling.add_argument("--requests", type=count, nargs="+", default=[10_000, 100_000, 1_000_000])
    scaling.add_argument("--policy", choices=list(SYSTEMS), default="aegaeon")
    commands.add_parser("panels")
    options, console = parser.parse_args(arguments), make_console()
    chosen = {"published": published, "speed": speed, "scale": scale, "panels": panels}[options.what]
    return run_measuring("simulator", lambda _spinners: chosen(options, console))


if __name__ == "__main__":
    sys.exit(main())
