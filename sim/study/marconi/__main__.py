"""Prefix caching for hybrid models: the experiments of Marconi (Pan et al., MLSys 2025) on made-up traces.

python -m sim.study.marconi --dataset lmsys                 # one sweep; lines as the artifact's policy_exploration.py
python -m sim.study.marconi --check                         # against what Marconi's own code found; exit code 1
python -m sim.study.marconi --figures                       # all figures; python -m plots.results draws them
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from aegaeon.run_header import result_header
from sim.study.command import make_console, make_table, run_command
from sim.study.marconi.caching_systems import CACHING_SYSTEMS
from sim.study.marconi.check import Comparison, missed_bounds, run_check
from sim.study.marconi.exploration import CachePoint, PointResult, run_points
from sim.study.marconi.figure_sweeps import CAPACITIES_GB, LENGTHS, SERIES, sweep, sweeps
from sim.study.marconi.session_trace import DATASETS, TraceSpec
from sim.systems.errors import InputError

PROGRAM = "sim.study.marconi"
RESULT = "marconi"  # what its file of results is of
_EXPLORED = ("vLLM+", "V1", "V2", "V3", "follow")
_RULE = "=" * 50
_PIPE_WIDTH = 140

Done = Callable[[CachePoint, PointResult], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, 1 where a bound is missed, 2 after a complaint about options or files."""
    options = _parser().parse_args(arguments)
    return run_command(PROGRAM, lambda: _study(options))


def _study(options: argparse.Namespace) -> int:
    if options.check:
        return _check(options)
    if options.figures:
        return _figures(options)
    return _explore(options)


# --- the check


def _check(options: argparse.Namespace) -> int:
    out = _place(options.out) if options.out is not None else None
    results, comparisons = run_check()
    console = make_console()
    console.print(_check_table(comparisons))
    if out is not None:
        _write(out, {"check": results}, console)
    return 0 if all(each.holds for each in comparisons) else 1


def _check_table(comparisons: Sequence[Comparison]) -> Table:
    table = make_table("hit rates (%) on the check's trace", "cache", "system", "found", "wanted", "within", "")
    for each in comparisons:
        bound = f"-{each.within:g} or more" if each.least else "or less" if each.most else f"{each.within:g}"
        verdict = "ok" if each.holds else "missed"
        table.add_row(f"{each.capacity_gb} GB", each.what, f"{each.found:.2f}", f"{each.wanted:.2f}", bound, verdict)
    return table


# --- one data set


def _explore(options: argparse.Namespace) -> int:
    out = _place(options.out or Path(f"plots/json/{RESULT}-{options.dataset}.json"))
    points = [
        CachePoint(_with(trace, options), size, tuple(options.policies), multiplier=options.bootstrap_multiplier)
        for trace, size in sweep(options.dataset, options.capacity, options.sps, options.art)
    ]
    results = _run(points, options.workers, _log)
    console = make_console(stderr=True)
    console.print(_result_table(options.dataset, results))
    _write(out, {"sweeps": {options.dataset: results}}, console)
    return 0


def _with(trace: TraceSpec, options: argparse.Namespace) -> TraceSpec:
    return TraceSpec(trace.dataset, trace.sessions_per_s, trace.response_s, options.sessions, options.seed)


def _log(point: CachePoint, result: PointResult) -> None:
    sys.stdout.write("\n".join(_log_lines(point, result)) + "\n")


def _log_lines(point: CachePoint, result: PointResult) -> list[str]:
    """As the artifact's plots parse them."""
    assert point.trace is not None, "a data set's"
    systems = result["systems"]
    lines = [f"{result['trace']}, capacity {point.capacity_gb:g} GB, bootstrap_multiplier {result['multiplier']}"]
    lines += [f"{name}: {_log_line(name, system)}" for name, system in systems.items()]
    lines += [_log_win(name, systems[name], systems["V1"]) for name in ("V2", "V3") if {name, "V1"} <= systems.keys()]
    return [*lines, _RULE]


def _log_line(name: str, system: Mapping[str, Any]) -> str:
    weight = f"eff_weight {system['alpha']:g}, " if name.startswith("V3") else ""
    return f"{weight}hit rate {system['hit_rate']:.2%}, FLOPs saved {system['flops_saved'] / 1e12:.1f}e12"


def _log_win(name: str, system: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    wins = {
        win: system[what] / base[what] - 1 if base[what] else 0.0
        for win, what in (("hit_rate_win", "hit_rate"), ("flops_saved_win", "flops_saved"))
    }
    return f"{name} compared to V1: " + ", ".join(f"{win} {value:.2%}" for win, value in wins.items())


def _result_table(title: str, results: Sequence[PointResult]) -> Table:
    names = list(results[0]["systems"])
    table = make_table(f"{title}: prompt tokens reused (%)", "trace", "cache (GB)", *names)
    for result in results:
        rates = [f"{100 * result['systems'][name]['hit_rate']:.2f}" for name in names]
        table.add_row(result["trace"], f"{result['capacity_gb']:g}", *rates)
    return table


# --- all figures


def _figures(options: argparse.Namespace) -> int:
    out = _place(options.out or Path(f"plots/json/{RESULT}.json"))
    by_dataset = sweeps(options.full)
    points = [*(point for each in by_dataset.values() for point in each), LENGTHS]
    points += [point for series in SERIES for point in series.points]
    found = _run(points, options.workers, lambda point, result: None)
    ahead = iter(found)
    swept = {dataset: [next(ahead) for _ in each] for dataset, each in by_dataset.items()}
    lengths = next(ahead)
    series: list[dict[str, Any]] = [
        {
            "figure": each.figure,
            "x": each.x,
            "labels": each.labels,
            "chosen": each.chosen,
            "points": [next(ahead) for _ in each.points],
            "published": each.published,
        }
        for each in SERIES
    ]
    console = make_console()
    tables = swept | {f"Figure {each['figure']}": each["points"] for each in series}
    for name, results in tables.items():
        console.print(_result_table(name, results))
    _write(out, {"sweeps": swept, "lengths": lengths, "series": series}, console)
    missed = [bound for result in found for bound in missed_bounds(result)]
    for bound in missed:
        console.print(f"missed: {bound}")
    return 1 if missed else 0


# --- what they share


def _run(points: Sequence[CachePoint], workers: int, done: Done) -> list[PointResult]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(
        *columns, console=make_console(stderr=True), transient=True, redirect_stdout=sys.stdout.isatty()
    ) as bar:
        task = bar.add_task("replaying", total=len(points))

        def told(point: CachePoint, result: PointResult) -> None:
            bar.update(task, advance=1, description=f"replayed {result['trace']}, {point.capacity_gb:g} GB")
            done(point, result)

        return run_points(points, workers, told)


def _place(path: Path) -> Path:
    """Where results will be; whatever is wrong with it is said before anything is replayed."""
    if path.is_dir():
        raise InputError(f"{path} is a folder; --out takes a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _write(path: Path, content: Mapping[str, Any], console: Console) -> None:
    path.write_text(json.dumps({**result_header(RESULT), **content}, indent=1) + "\n", encoding="utf-8")
    console.print(f"{path}", soft_wrap=True)


def _parser() -> argparse.ArgumentParser:
    told = (__doc__ or "").replace("``", "")
    made = argparse.ArgumentParser(prog=PROGRAM, description=told, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = made.add_mutually_exclusive_group(required=True)
    what.add_argument("--dataset", choices=[*DATASETS], help="sweep over traces of this kind")
    what.add_argument("--check", action="store_true", help="compare with what Marconi's own code found")
    what.add_argument("--figures", action="store_true", help="everything that Figures 7 to 13 show")
    sizes = "; ".join(f"{name}: {' '.join(f'{size:g}' for size in own)}" for name, own in CAPACITIES_GB.items())
    made.add_argument(
        "--bootstrap_multiplier", "--bootstrap-multiplier", type=int, metavar="N", help="default 5, of lmsys 15"
    )
    made.add_argument("--capacity", type=float, nargs="+", default=(), metavar="GB", help=f"default {sizes}")
    made.add_argument("--sps", type=float, nargs="+", default=(), metavar="R", help="sessions that begin a second")
    made.add_argument("--art", type=float, nargs="+", default=(), metavar="S", help="swebench: seconds between turns")
    made.add_argument("--sessions", type=int, default=100, metavar="N")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--policies", nargs="+", choices=[*CACHING_SYSTEMS], default=_EXPLORED)
    made.add_argument("--full", action="store_true", help="with --figures: all 72 points of swebench, not 12")
    made.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N")
    made.add_argument("--out", type=Path, metavar="FILE", help=f"default plots/json/{RESULT}.json or -<dataset>.json")
    return made


if __name__ == "__main__":
    sys.exit(main())
