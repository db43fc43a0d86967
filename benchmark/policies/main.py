"""All scheduling policies on one simulated pool: where they cross 90 % and 99 %, what each idea is worth, how robust.

2 nodes x 8 H100, 50 GB/s each way, 2 TB per node, shipped profiles; metric ``slo_attainment``, averaged over seeds. The
policy was tuned on seeds 0 and 1; the default seeds begin with 2::

    python -m benchmark.policies            # tables, benchmark/results/policies.json and .png
    python -m benchmark.policies --quick    # one seed, few points
    python -m benchmark.policies --part sweep bounds    # what is not measured again is kept from the last run

Markets that need published traces are left out, and named, where ../shared/data is not.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from statistics import fmean
from types import MappingProxyType
from typing import Any, TypeVar

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from aegaeon.cli.terminal.console import make_console
from aegaeon.crossing import CrossingKind, crossing
from benchmark.command.main import count, draw_result, run_command
from benchmark.command.result_file import RESULTS, write_result
from benchmark.policies.cases import (
    CaseLoad,
    Contender,
    Score,
    ablations,
    bound_load,
    contenders,
    devices_needed,
    has_traces,
    misled,
    run,
    run_bounded,
    scenario_of,
    steady_load,
)
from benchmark.policies.figure_points import FigurePoint, by_panel, figure_points
from sim.systems.systems import find_system

LEVELS = (0.90, 0.99)
DURATIONS_S = {0.1: 120.0, 0.5: 60.0}
RANGES = {
    ("slack", 0.1): (160, 175, 184, 190, 205, 220, 235),
    ("slack", 0.5): (125, 137, 149, 161, 173),
    ("others", 0.1): (16, 32, 48, 64, 80, 96),
    ("others", 0.5): (8, 16, 24, 32, 48, 64),
}
QUICK_RANGES = {
    ("slack", 0.1): (190, 217),
    ("slack", 0.5): (147, 167),
    ("others", 0.1): (32, 64),
    ("others", 0.5): (16, 40),
}
ABLATION_POINTS = ((205, 0.1), (155, 0.5))
ERRORS = (0.7, 1.3)
FIRST_SEED = 2  # seeds 0 and 1 were tuned on
SHARES = (1.0, 0.88)  # of the bound
OVERLOADS = ((191, 0.15), (210, 0.25), (210, 0.5), (217, 0.75))  # weights fit in host memory
TOO_MANY = ((286, 0.1), (250, 0.5))  # weights do not fit in 2 TB a node
HOST_BYTES = (2 * 10**12, 4 * 10**12)
QUEUES = (32, 128, 512)  # prompts that may wait on a node
REFUSED_AT = ((160, 0.1), (210, 0.25), (217, 0.75))
LONG_MODELS = 160  # about 90 % of the bound's load in steady state

Result = TypeVar("Result")
Curve = list[tuple[int, float, float]]
"""(models, mean attainment, worst model) by models."""


@dataclass(frozen=True, slots=True)
class Market:
    """How one is swept: the mean rate of a model, and numbers of models around where each policy falls below 90 %."""

    kind: str
    rate_per_s: float
    duration_s: float
    slack: tuple[int, ...]
    aegaeon: tuple[int, ...]

    def load(self, models: int, seed: int) -> CaseLoad:
        """So many models of this market."""
        return CaseLoad(self.kind, models, self.rate_per_s, self.duration_s, seed)


MARKETS = MappingProxyType(  # by name; servegen has rates of its own
    {
        "two-tier, 2 req/s": Market("two-tier", 2.0, 60.0, (105, 120, 135, 150, 165, 180), (60, 80, 100, 115, 130)),
        "two-tier, 0.5 req/s": Market("two-tier", 0.5, 60.0, (400, 440, 480, 520, 560), (200, 230, 260, 290, 320)),
        "arena, 1 req/s": Market("arena", 1.0, 60.0, (120, 150, 180, 210), (20, 40, 60, 80, 100)),
        "azure, 0.15 req/s": Market("azure", 0.15, 120.0, (140, 160, 180, 200, 220), (20, 40, 60, 80, 100)),
        "servegen": Market("servegen", 0.0, 120.0, (170, 200, 230, 260, 290, 320), (80, 100, 120, 140, 160)),
    }
)
EVEN = Market("even", 0.1, 120.0, RANGES["slack", 0.1], RANGES["others", 0.1])  # where profiles are wrong


@dataclass(frozen=True, slots=True)
class Trial:
    """One run; ``series`` and ``load.models`` say where its result belongs."""

    series: str
    contender: Contender
    load: CaseLoad


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.policies", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one seed, few points")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS), help="measure these only")
    parser.add_argument("--seeds", type=count, metavar="N", help="default 3, or 1 with --quick")
    parser.add_argument("--workers", type=count, default=os.cpu_count() or 1, metavar="N")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR")
    options = parser.parse_args()
    return run_command("policies", lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    console = make_console()
    seeds = range(FIRST_SEED, FIRST_SEED + (options.seeds or (1 if options.quick else 3)))
    path = options.out / ("policies-quick.json" if options.quick else "policies.json")
    results = _read(path) if set(options.part) < set(PARTS) else {}
    for part in options.part:
        results |= PARTS[part](options.quick, seeds, options.workers, results)
        save(results, path)
    report(results, console)
    if "bound" in results:
        draw_result(path, console)
    return 0


def _read(path: Path) -> dict[str, Any]:
    """The results so far, if there are any."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


# --- parts: what each measures, by key of the results


def measure_sweeps(quick: bool, seeds: Sequence[int], workers: int, results: dict[str, Any]) -> dict[str, Any]:
    """Every contender over the number of models, at both rates."""
    bounds = {f"{rate:g}": {str(seed): bound_models(rate, seed) for seed in seeds} for rate in DURATIONS_S}
    return {"bound": bounds, **_curves(sweep_jobs(quick, seeds), workers, results)}


def measure_at_bounds(quick: bool, seeds: Sequence[int], workers: int, results: dict[str, Any]) -> dict[str, Any]:
    """``slack`` at shares of the bound of each seed's own workloads."""
    slack = contenders()["slack"]
    cases = [
        (rate, share, seed, int(share * bound_models(rate, seed)))
        for rate in DURATIONS_S
        for share in SHARES
        for seed in seeds
    ]
    jobs = [
        Trial(f"{rate:g} {share:g}", slack, CaseLoad("even", models, rate, DURATIONS_S[rate], seed))
        for rate, share, seed, models in cases
    ]
    rows = [
        {"rate": rate, "share": share, "seed": seed, "models": models, **asdict(score)}
        for (rate, share, seed, models), score in zip(cases, play(jobs, workers), strict=True)
    ]
    return {"at bounds": rows}


def measure_ablation(quick: bool, seeds: Sequence[int], workers: int, results: dict[str, Any]) -> dict[str, Any]:
    """``slack`` with and without each idea, near the bound."""
    return _curves(ablation_jobs(seeds), workers, results)


def measure_markets(quick: bool, seeds: Sequence[int], workers: int, results: dict[str, Any]) -> dict[str, Any]:
    """``slack`` and ``aegaeon`` on other markets, and with wrong profiles."""
    names = ["even", *_markets()]
    limits = _mapped(market_limits, [(name, seeds[0]) for name in names], workers)
    curves = _curves(robustness_jobs(quick, seeds), workers, _without_markets(results))
    return {"market limits": dict(zip(names, limits, strict=True)), **curves}


def _without_markets(results: dict[str, Any]) -> dict[str, Any]:
    """The results without the curves of markets, which may have had other names."""
    curves = {name: curve for name, curve in results.get("curves", {}).items() if not name.startswith("market ")}
    return {**results, "curves": curves}


def measure_figures(quick: bool, seeds: Sequence[int], workers: int, results: dict[str, Any]) -> dict[str, Any]:
    """Every point of Figures 11 to 13 and 17(a)."""
    points = figure_points(every=4 if quick else 1)
    return {"figures": by_panel(points, _mapped(FigurePoint.attainment, [(point,) for point in points], workers))}


def measure_loads(quick: bool, seeds: Sequence[int], workers: int, results: dict[str, Any]) -> dict[str, Any]:
    """Overload by rate; by models, where host memory has room for their weights and where it has not; refusals."""
    slack = contenders()["slack"]
    loads = [_even(*point, seeds[0]) for point in OVERLOADS]
    loads += [replace(_even(*point, seeds[0]), host_bytes=size) for point in TOO_MANY for size in HOST_BYTES]
    scores = play([Trial("loads", slack, load) for load in loads], workers)
    rows = [{**_described(load), **asdict(score)} for load, score in zip(loads, scores, strict=True)]
    cases = [(slack, _even(*point, seeds[0]), queue) for point in REFUSED_AT for queue in QUEUES]
    refused = _mapped(run_bounded, cases, workers)
    refusals = [
        {**_described(load), "queue": queue, **asdict(one)}
        for (_, load, queue), one in zip(cases, refused, strict=True)
    ]
    return {"loads": rows, "refusals": refusals}


def measure_hour(quick: bool, seeds: Sequence[int], workers: int, results: dict[str, Any]) -> dict[str, Any]:
    """A long run at 90 % of the bound's steady load."""
    load = CaseLoad("even", LONG_MODELS, 0.1, 600.0 if quick else 3600.0, seeds[0])
    (score,) = play([Trial("hour", contenders()["slack"], load)], workers)
    return {"hour": [{**_described(load), "seconds": load.duration_s, **asdict(score)}]}


def _even(models: int, rate_per_s: float, seed: int) -> CaseLoad:
    return CaseLoad("even", models, rate_per_s, 60.0 if rate_per_s > 0.2 else 120.0, seed)


def _described(load: CaseLoad) -> dict[str, Any]:
    """What rows say of a load; ``bound``: above 1 nobody can keep every deadline."""
    return {
        "models": load.models,
        "rate": load.rate_per_s,
        "host TB": load.host_bytes / 1e12,
        "bound": bound_load(load),
    }


def measure_devices(quick: bool, seeds: Sequence[int], workers: int, results: dict[str, Any]) -> dict[str, Any]:
    """Devices that a two-tier market of 100 models needs."""
    every, load = contenders(), CaseLoad("two-tier", 100, 0.5, 120.0, seeds[0])
    needed = _mapped(devices_needed, [(every[name], load) for name in ("slack", "sllm")], workers)
    dedicated = run(Contender("dedicated", find_system("dedicated")), load).devices
    idle = load.models - len(scenario_of(load).models)  # nobody asks for them in this time, but somebody may
    return {"devices": {"slack": needed[0], "sllm": needed[1], "dedicated": dedicated + idle}}


PARTS: Mapping[str, Callable[[bool, Sequence[int], int, dict[str, Any]], dict[str, Any]]] = MappingProxyType(
    {
        "bounds": measure_at_bounds,
        "sweep": measure_sweeps,
        "figures": measure_figures,
        "markets": measure_markets,
        "loads": measure_loads,
        "hour": measure_hour,
        "devices": measure_devices,
        "ablation": measure_ablation,
    }
)


def _curves(jobs: Sequence[Trial], workers: int, results: dict[str, Any]) -> dict[str, Any]:
    """The results' curves, with those of the jobs in place of older ones."""
    return {"curves": results.get("curves", {}) | collect(jobs, play(jobs, workers))}


def sweep_jobs(quick: bool, seeds: Sequence[int]) -> list[Trial]:
    """Every contender over the number of models, at both rates."""
    ranges = QUICK_RANGES if quick else RANGES
    return [
        Trial(f"sweep {rate:g} {name}", contender, CaseLoad("even", models, rate, duration_s, seed))
        for rate, duration_s in DURATIONS_S.items()
        for name, contender in contenders().items()
        for models in ranges["slack" if name == "slack" else "others", rate]
        for seed in seeds
    ]


def ablation_jobs(seeds: Sequence[int]) -> list[Trial]:
    """``slack`` with and without each idea, near the bound."""
    return [
        Trial(f"ablation {rate:g} {name}", contender, CaseLoad("even", models, rate, DURATIONS_S[rate], seed))
        for models, rate in ABLATION_POINTS
        for name, contender in ablations().items()
        for seed in seeds
    ]


_SPLITS = tuple(name for name in contenders() if name.startswith("aegaeon/"))


def robustness_jobs(quick: bool, seeds: Sequence[int]) -> list[Trial]:
    """``slack`` and ``aegaeon`` on other markets, and with wrong profiles."""
    every = contenders()
    sweeps = [(name, MARKETS[name], every) for name in _markets()]
    for error in ERRORS:
        wrong = {name: misled(every[name], error) for name in ("slack", *_SPLITS)}
        sweeps.append((f"profiles x{error:g}", EVEN, wrong))
    return [
        Trial(f"market {case} {name}", contenders_of[name], market.load(models, seed))
        for case, market, contenders_of in sweeps
        for name, counts in (("slack", market.slack), *((split, market.aegaeon) for split in _SPLITS))
        for models in (counts[::2] if quick else counts)
        for seed in seeds
    ]


def _markets() -> list[str]:
    return [name for name, market in MARKETS.items() if market.kind == "two-tier" or has_traces()]


def play(jobs: Sequence[Trial], workers: int) -> list[Score]:
    """All runs."""
    return _mapped(run, [(job.contender, job.load) for job in jobs], workers)


def _mapped(work: Callable[..., Result], arguments: Sequence[tuple[Any, ...]], workers: int) -> list[Result]:
    """Calls on several cores, with a progress bar; results in order."""
    with (
        Progress(console=make_console(stderr=True), transient=True) as bar,
        ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) as pool,
    ):
        task = bar.add_task("simulating", total=len(arguments))
        futures = [pool.submit(work, *each) for each in arguments]
        for future in futures:
            future.add_done_callback(lambda _: bar.advance(task))
        return [future.result() for future in futures]


@cache
def bound_models(rate_per_s: float, seed: int) -> int:
    """The most models of a seed's workloads for which the bound allows that no token is late."""

    def load(models: int) -> float:
        return bound_load(CaseLoad("even", models, rate_per_s, DURATIONS_S[rate_per_s], seed))

    return _root(lambda models: load(models) - 1.0)


def market_limits(name: str, seed: int) -> tuple[int, int]:
    """The most models of a market for which no token need be late, and those with whom the pool keeps up for ever.

    More than the latter fit where the load ends before the pool has fallen behind by what it may.
    """
    market = MARKETS.get(name, EVEN)

    def most(limit: Callable[[CaseLoad], float]) -> int:
        return _root(lambda models: limit(market.load(models, seed)) - 1.0, 20, 800)

    return most(bound_load), most(steady_load)


def _root(excess: Callable[[int], float], low: int = 100, high: int = 300) -> int:
    """Where ``excess`` of a whole number goes above 0, by bisection."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if excess(middle) > 0 else (middle, high)
    return low


def collect(jobs: Sequence[Trial], scores: Sequence[Score]) -> dict[str, Curve]:
    """Curves by series."""
    points: dict[str, dict[int, list[Score]]] = {}
    for job, score in zip(jobs, scores, strict=True):
        points.setdefault(job.series, {}).setdefault(job.load.models, []).append(score)
    return {
        series: [
            (models, fmean(one.attainment for one in found), fmean(one.worst_model for one in found))
            for models, found in sorted(by_models.items())
        ]
        for series, by_models in points.items()
    }


MARKS = {CrossingKind.NEVER: "<", CrossingKind.CROSSES: "", CrossingKind.BEYOND: ">"}


def crossed(curve: Curve, level: float) -> tuple[float, str]:
    """Models at which attainment falls below a level, and ``>`` or ``<`` where that is outside of what was run."""
    found = crossing([(models, mean) for models, mean, _ in curve], level)
    return found.x, MARKS[found.kind]


# --- what a person sees

_ROWS = MappingProxyType(
    {
        "at bounds": "slack at shares of each seed's own bound",
        "loads": "overload",
        "refusals": "with a bounded queue on each node",
        "hour": "a long run",
    }
)


def report(results: dict[str, Any], console: Console) -> None:
    """Tables, of what there is."""
    for table in _tables(results):
        console.print(table)
    if "devices" in results:
        console.print(f"devices for a two-tier market of 100 models at 99 %: {results['devices']}")
    if not has_traces():
        console.print("markets arena, azure and servegen were left out: ../shared/data is not there")


def _tables(results: dict[str, Any]) -> Iterator[Table]:
    series = results.get("curves", {})
    if "bound" in results and any(name.startswith("sweep") for name in series):
        yield from (_crossing_table(results, rate) for rate in DURATIONS_S)
    if any(name.startswith("ablation") for name in series):
        yield _ablation_table(results)
    if "market limits" in results:
        yield _robustness_table(results)
    yield from (_table(title, results[key]) for key, title in _ROWS.items() if key in results)
    if "figures" in results:
        yield _table("slack over aegaeon at the points of the figures", _margins(results["figures"]))


def _table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Rows of equal keys as they are."""
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False)
    for key, value in rows[0].items():
        table.add_column(key, justify="left" if isinstance(value, str) else "right")
    for row in rows:
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()))
    return table


def _margins(figures: Mapping[str, Sequence[Sequence[float]]]) -> list[dict[str, Any]]:
    """For each panel the point where ``slack`` is least ahead."""
    least = {panel: min(points, key=lambda point: point[1] - point[2]) for panel, points in figures.items()}
    return [
        {"panel": panel, "points": len(figures[panel]), "least ahead at": x, "slack": ours, "aegaeon": theirs}
        for panel, (x, ours, theirs) in least.items()
    ]


def _crossing_table(results: dict[str, Any], rate: float) -> Table:
    bound = fmean(results["bound"][f"{rate:g}"].values())
    table = Table(title=f"models x {rate:g} req/s (bound: {bound:.0f})", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("policy")
    for heading in ("at 90 %", "of bound", "at 99 %", "of bound", "worst model at 90 %"):
        table.add_column(heading, justify="right", no_wrap=True)
    for series, curve in _best_split(results, f"sweep {rate:g} ").items():
        cells: list[str] = []
        for level in LEVELS:
            models, mark = crossed(curve, level)
            cells += [f"{mark}{models:.0f}", f"{mark}{models / bound:.0%}"]
        table.add_row(series, *cells, f"{_worst_at(curve, crossed(curve, LEVELS[0])[0]):.2f}")
    return table


def _best_split(results: dict[str, Any], prefix: str) -> dict[str, Curve]:
    """Curves of a prefix by policy; of the splits of ``aegaeon`` the one with the latest crossing."""
    found = {key.removeprefix(prefix): curve for key, curve in results["curves"].items() if key.startswith(prefix)}
    splits = [name for name in found if name.startswith("aegaeon/")]
    best = max(splits, key=lambda name: crossed(found[name], LEVELS[0])[0], default=None)
    return {name: curve for name, curve in found.items() if name == best or name not in splits}


def _worst_at(curve: Curve, models: float) -> float:
    return min(curve, key=lambda point: abs(point[0] - models))[2]


def _ablation_table(results: dict[str, Any]) -> Table:
    table = Table(title="what each idea is worth: attainment near the bound", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("slack")
    for models, rate in ABLATION_POINTS:
        table.add_column(f"{models} x {rate:g}", justify="right")
        table.add_column("worst model", justify="right")
    for name in ablations():
        cells: list[str] = []
        for _, rate in ABLATION_POINTS:
            ((_, attainment, worst),) = results["curves"][f"ablation {rate:g} {name}"]
            cells += [f"{attainment:.3f}", f"{worst:.2f}"]
        table.add_row(name, *cells)
    return table


def _robustness_table(results: dict[str, Any]) -> Table:
    table = Table(title="other markets: models at 90 %", box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("market", "bound", "steady", "slack", "of bound", "aegaeon", "of steady", "split", "times"):
        table.add_column(heading, justify="left" if heading == "market" else "right")
    for case in _market_cases(results):
        bound, steady = _market_limits(results, case)
        ours, our_mark = crossed(results["curves"][f"market {case} slack"], LEVELS[0])
        split, best = _best_aegaeon(results, case)
        theirs, their_mark = crossed(best, LEVELS[0])
        times = f"{our_mark}{ours / theirs:.1f}" if not their_mark else "-"  # no crossing, no ratio
        our_cells = (f"{our_mark}{ours:.0f}", f"{our_mark}{ours / bound:.0%}")
        their_cells = (f"{their_mark}{theirs:.0f}", f"{their_mark}{theirs / steady:.0%}")
        table.add_row(case, f"{bound}", f"{steady}", *our_cells, *their_cells, split, times)
    return table


def _best_aegaeon(results: dict[str, Any], case: str) -> tuple[str, Curve]:
    """The best split of the paper's policy in a market, and its curve."""
    found = _best_split(results, f"market {case} ")
    return next((name, curve) for name, curve in found.items() if name in _SPLITS)


def _market_cases(results: dict[str, Any]) -> list[str]:
    return sorted({key.removeprefix("market ").rsplit(" ", 1)[0] for key in results["curves"] if "market " in key})


def _market_limits(results: dict[str, Any], case: str) -> tuple[int, int]:
    """The bound and what is steady; wrong profiles change nothing of what is possible."""
    found: dict[str, tuple[int, int]] = results["market limits"]
    return found[case] if case in found else found["even"]


def save(results: dict[str, Any], path: Path) -> None:
    """All of it, and what its figure shows."""
    shown = {"figure": figure(results)} if "bound" in results else {}
    write_result(path, "policies", {**results, **shown})


def figure(results: dict[str, Any]) -> dict[str, Any]:
    """The best split's curves of both sweeps with their bounds, and crossings in other markets."""
    return {
        "sweeps": [_sweep(results, rate) for rate in DURATIONS_S],
        "markets": [_market(results, case) for case in _market_cases(results)] if "market limits" in results else [],
    }


def _sweep(results: dict[str, Any], rate: float) -> dict[str, Any]:
    curves = [
        {"policy": _policy(series), "remark": _remark(series), "points": curve}
        for series, curve in _best_split(results, f"sweep {rate:g} ").items()
    ]
    return {"rate": rate, "bound": fmean(results["bound"][f"{rate:g}"].values()), "curves": curves}


def _policy(series: str) -> str:
    """``aegaeon`` of ``aegaeon/3`` and of ``aegaeon (paper's constants)``."""
    return series.partition("/")[0].partition(" (")[0]


def _remark(series: str) -> str:
    """What a series is beside its policy."""
    split, remark = series.partition("/")[2], series.partition(" (")[2]
    return f"{split} of 8 for prefill" if split else remark.removesuffix(")")


def _market(results: dict[str, Any], case: str) -> dict[str, Any]:
    curves = {"slack": results["curves"][f"market {case} slack"], "aegaeon": _best_aegaeon(results, case)[1]}
    found = {policy: crossed(curve, LEVELS[0]) for policy, curve in curves.items()}
    return {
        "name": case,
        "bound": _market_limits(results, case)[0],
        "crossings": {policy: {"models": models, "mark": mark} for policy, (models, mark) in found.items()},
    }
