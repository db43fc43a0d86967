"""``python3 -m sim.simulate``: sweeps over loads and systems, with the artifact's command line and output files."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from aegaeon.run_header import Origin, RunHeader, SystemRun
from sim.records.chrome_trace import write_trace
from sim.records.output import PointOutput, write_sweep
from sim.records.trace_recorder import TraceRecorder
from sim.study.command import make_console, run_command
from sim.study.hardware import Hardware
from sim.study.options import SweepPlan, make_plans, make_setting, parser
from sim.study.sweep import Point, Setting, prepare, run_point, run_sweep
from sim.systems.errors import InputError


def main(arguments: Sequence[str] | None = None, program: str = "sim.simulate") -> int:
    """Exit status: 0, or 2 after a complaint about options or files; nothing is written then."""
    options = parser(program).parse_args(arguments)
    return run_command(program, lambda: _simulate(options, make_console(), make_console(stderr=True)))


def _simulate(options: argparse.Namespace, out: Console, progress_on: Console) -> int:
    setting = make_setting(options, os.environ)
    plans = make_plans(options, setting.slo)
    points = [point for plan in plans for point in plan.points]
    if options.chrome_trace is not None and len(points) > 1:
        raise InputError(
            f"--chrome-trace shows one policy at one load, not {len(points)}: narrow --policy and the load"
        )
    for workload in dict.fromkeys(point.workload for point in points):
        _, hardware = prepare(workload, setting)  # whatever is wrong with a load is said before any is simulated
    outputs = _run(points, setting, options, progress_on)
    by_point = dict(zip(points, outputs, strict=True))
    for plan in plans:
        found = [by_point[point] for point in plan.points]
        path = options.out / plan.file_name
        write_sweep(path, found, _header(plan, options, setting, hardware))
        out.print(_table(plan, found, hardware))
        out.print(f"{path}", highlight=False, soft_wrap=True)
    return 0


def _run(points: Sequence[Point], setting: Setting, options: argparse.Namespace, console: Console) -> list[PointOutput]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("simulating", total=len(points))

        def done(point: Point, output: PointOutput) -> None:
            bar.update(task, advance=1, description=f"simulated {point.key}")

        if options.chrome_trace is not None:
            return [_run_traced(points[0], setting, options, done)]
        return run_sweep(points, setting, options.workers, done)


def _run_traced(
    point: Point, setting: Setting, options: argparse.Namespace, done: Callable[[Point, PointOutput], None]
) -> PointOutput:
    recorder = TraceRecorder()
    output = run_point(point, setting, recorder)
    write_trace(recorder.spans, options.chrome_trace)
    done(point, output)
    return output


def _header(plan: SweepPlan, options: argparse.Namespace, setting: Setting, hardware: Hardware) -> dict[str, Any]:
    runs = {point.key: SystemRun(point.policy, point.workload.load) for point in plan.points}
    return {
        **RunHeader.here(Origin.SIMULATED, hardware.label, setting.slo, runs).plain(),
        "seed": options.seed or 0,
        "compat": options.compat,
        "nodes": setting.hardware.nodes,
        "mix": list(setting.mix),
        "constants": asdict(hardware.constants),
    }


def _table(plan: SweepPlan, outputs: Sequence[PointOutput], hardware: Hardware) -> Table:
    """A row per policy and point."""
    table = Table(title=f"simulated on {hardware.label}", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("policy")
    bounded = ("bound",) if any("bound_load" in output.summary for output in outputs) else ()
    found = ("found",) if any("prefix_cache" in output.summary for output in outputs) else ()
    always = ("x", "requests", "dropped", "slo_attainment", "qos", "worst model", "switches", "busy")
    for heading in (*always, *found, *bounded):
        table.add_column(heading, justify="right", no_wrap=True)
    ordered = sorted(zip(plan.points, outputs, strict=True), key=lambda pair: _rank(plan, pair[0]))
    for point, output in ordered:
        table.add_row(point.policy, f"{point.x:g}", *_cells(output))
    return table


def _rank(plan: SweepPlan, point: Point) -> tuple[int, float]:
    policies = list(dict.fromkeys(each.policy for each in plan.points))
    return policies.index(point.policy), point.x


def _cells(output: PointOutput) -> list[str]:
    if output.no_placement is not None:
        return ["no placement"]
    values = output.summary
    return [
        f"{values['requests']}",
        f"{values['dropped']}",
        *(f"{values[name]:.3f}" for name in ("slo_attainment", "qos", "worst_model")),
        f"{values['switches']}",
        f"{values['busy_share']:.1%}",
        *([f"{values['prefix_cache']['hit_rate']:.1%}"] if "prefix_cache" in values else []),
        *([f"{values['bound_load']:.2f}"] if "bound_load" in values else []),
    ]


if __name__ == "__main__":
    sys.exit(main())
