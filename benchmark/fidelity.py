"""Compares the simulator with the real pool on this machine: the same requests, several loads, one of them too much.

    python3 benchmark/fidelity.py [--rates 0.25 0.5 1 1.5 3] [--seconds 40] [--out benchmark/results]

Four small models are profiled here (``aegaeon profile``), then served by one prefill and one decode instance of a
thread each. The simulator gets the profiles, and constants of the machine that are measured here before the loads run:
the way of a request through the idle pool, and, from the log of a load of its own, what a turn takes beside its steps
and how much slower steps are in a pool than in the profile. How much two instances that are always busy slow each other
down is measured too, and told; it is part of those ratios. Nothing is fitted to the loads that are compared.

Does not know: how either side works.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median

if not __package__:  # run as a script: the folder above has the packages
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from rich.console import Console
from rich.table import Table

from aegaeon.cli.console import make_console
from aegaeon.cli.logs import configure_logs
from aegaeon.core.record import RequestRecord, mean_attainment
from aegaeon.core.slo import Slo
from aegaeon.device.local_cpu import local_cpu
from aegaeon.latency.profile_book import ProfileEntry
from aegaeon.profiling.errors import ProfilingError
from aegaeon.workload import QuantileTable, SyntheticSpec, synthesize
from benchmark import fidelity_pool as real
from benchmark.e2e_options import amount
from benchmark.fidelity_measured import Measured, RealRun
from benchmark.fidelity_sim import Machine, simulate
from benchmark.fidelity_turns import TurnCosts
from benchmark.interrupt import run_to_end
from benchmark.job import Job, LengthLimits, ServedModel, plan_jobs
from benchmark.pool import PoolError
from benchmark.results import failures
from benchmark.small_models import CACHE_DIR
from benchmark.usage import UsageError

RATES = (0.25, 0.5, 1.0, 1.5, 3.0)  # requests per second of each model
OWN_RATE = 0.8  # of the load that turns are measured on
SLO = Slo(1.0, 0.05)
LIMITS = LengthLimits(320, 96)
ATTAINMENT_TARGET, LATENCY_TARGET = 0.02, 0.10
MEASURED = "measured.json"
QUIET_CORES = 0.1  # what others may use without disturbing


@dataclass(frozen=True, slots=True)
class Outcome:
    """One load on one side."""

    slo_attainment: float
    ttft_p50_s: float
    tpot_p50_s: float
    ttft_p90_s: float
    tpot_p90_s: float

    @classmethod
    def of(cls, records: Sequence[RequestRecord]) -> Outcome:
        ttfts = sorted(record.ttft_s for record in records if record.ttft_s is not None)
        tpots = sorted(record.tpot_s for record in records if record.tpot_s is not None)
        return cls(mean_attainment(records), median(ttfts), median(tpots), _p90(ttfts), _p90(tpots))


@dataclass(frozen=True, slots=True)
class Comparison:
    """One load on both sides. ``failed`` requests are the real pool's.

    ``own_cores`` were busy with the pool and its clients, ``other_cores`` with what has nothing to do with it.
    """

    rate_per_s: float
    requests: int
    failed: int
    own_cores: float
    other_cores: float
    measured: Outcome
    simulated: Outcome

    @property
    def attainment_points(self) -> float:
        """Simulated less measured, in percentage points."""
        return 100 * (self.simulated.slo_attainment - self.measured.slo_attainment)

    @property
    def ttft_error(self) -> float:
        return self.simulated.ttft_p50_s / self.measured.ttft_p50_s - 1

    @property
    def tpot_error(self) -> float:
        return self.simulated.tpot_p50_s / self.measured.tpot_p50_s - 1

    @property
    def within(self) -> bool:
        """Whether all three are within their targets."""
        latency = max(abs(self.ttft_error), abs(self.tpot_error))
        return abs(self.attainment_points) <= 100 * ATTAINMENT_TARGET and latency <= LATENCY_TARGET


def _p90(values: Sequence[float]) -> float:
    return values[min(len(values) - 1, int(0.9 * len(values)))]


def make_jobs(names: Sequence[str], rate_per_s: float, seconds: float, seed: int) -> list[Job]:
    """A load: Poisson arrivals of every model, ShareGPT-like lengths scaled to small models."""
    spec = SyntheticSpec(len(names), rate_per_s, seconds, input_scale=0.2, output_scale=0.2, seed=seed)
    served = [ServedModel(name, real.CONTEXT_TOKENS) for name in names]
    return plan_jobs(synthesize(spec, QuantileTable.shipped()), served, LIMITS)


def comparison_table(rows: Sequence[Comparison]) -> Table:
    """Measured and simulated side by side."""
    table = Table(title="The real pool (m) and the simulator (s), same requests")
    for head in (
        "req/s",
        "requests",
        "cores\nown",
        "\nother",
        "on time\nm",
        "\ns",
        "points",
        "TTFT p50\nm (ms)",
        "\ns",
        "error",
        "TPOT p50\nm (ms)",
        "\ns",
        "error",
        "within",
    ):
        table.add_column(head, justify="right")
    for row in rows:
        failed = f" ({row.failed} failed)" if row.failed else ""
        table.add_row(
            f"{row.rate_per_s * len(real.ARCHITECTURES):g}",
            f"{row.requests}{failed}",
            f"{row.own_cores:.2f}",
            f"{row.other_cores:.2f}",
            f"{row.measured.slo_attainment:.1%}",
            f"{row.simulated.slo_attainment:.1%}",
            f"{row.attainment_points:+.1f}",
            f"{row.measured.ttft_p50_s * 1e3:.0f}",
            f"{row.simulated.ttft_p50_s * 1e3:.0f}",
            f"{row.ttft_error:+.1%}",
            f"{row.measured.tpot_p50_s * 1e3:.1f}",
            f"{row.simulated.tpot_p50_s * 1e3:.1f}",
            f"{row.tpot_error:+.1%}",
            "yes" if row.within else "no",
        )
    return table


def draw(rows: Sequence[Comparison], path: Path) -> None:
    """Three panels over the load: attainment, median TTFT, median TPOT; lines simulated, rings measured."""
    from matplotlib.figure import Figure

    from plots.style import DPI, figure_style, system_look

    rates = [row.rate_per_s * len(real.ARCHITECTURES) for row in rows]
    panels = (
        ("tokens on time (%)", lambda outcome: 100 * outcome.slo_attainment),
        ("median TTFT (ms)", lambda outcome: 1e3 * outcome.ttft_p50_s),
        ("median TPOT (ms)", lambda outcome: 1e3 * outcome.tpot_p50_s),
    )
    with figure_style():
        figure = Figure(figsize=(8.4, 2.9), layout="constrained")
        for axes, (label, value) in zip(figure.subplots(1, 3), panels, strict=True):
            axes.plot(rates, [value(row.simulated) for row in rows], label="simulated", **system_look("aegaeon").line)
            look = system_look("sllm", measured=True).line | {"linestyle": "none"}
            axes.plot(rates, [value(row.measured) for row in rows], label="measured", **look)
            axes.set_xlabel("requests per second")
            axes.set_title(label)
            axes.set_ylim(bottom=0)
            axes.spines[["top", "right"]].set_visible(False)
        figure.axes[0].legend(frameon=False, loc="lower left")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=DPI, metadata={"Software": None})


def _profile(models: Mapping[str, Path], options: argparse.Namespace, console: Console) -> dict[str, ProfileEntry]:
    console.print("profiling (what was measured before is kept) ...")
    date = datetime.now(UTC).date().isoformat()
    problems = real.profile(models, options.work / "profiles", date, lambda done, total, text: None)
    if problems:
        raise ProfilingError("\n".join(problems))
    return real.profiles(options.work / "profiles", local_cpu(real.THREADS).name, list(models))


def _measure(
    models: Mapping[str, Path],
    profiles: Mapping[str, ProfileEntry],
    loads: Mapping[float, list[Job]],
    options: argparse.Namespace,
    console: Console,
) -> None:
    """The machine's constants, and what came of each load, into a file."""
    with tempfile.TemporaryDirectory(prefix="aegaeon-fidelity-") as scratch:
        prepared = real.prepare(models, Path(scratch))
        slowdown = real.measure_interference(prepared)
        console.print(f"beside each other, prefill takes {slowdown[0]:.2f}x, decode {slowdown[1]:.2f}x as long")
        cache_bytes = 8 * sum(model.spec.weight_bytes for model in prepared)  # room to pack all hot weights
        log = Path(scratch) / "events.jsonl"
        arguments = real.serve_arguments(models, options.work / "profiles", cache_bytes, log)
        with real.pool(arguments, Path(scratch) / "pool.log") as pool:
            way_s = asyncio.run(real.warm_up(pool.url, list(models)))
            console.print(f"the way of a request through the idle pool: {way_s * 1e3:.1f} ms")
            started_s = time.monotonic()
            real.run_sync(pool.url, make_jobs(list(models), OWN_RATE, options.seconds / 2, options.seed + 1), SLO)
            ended_s = time.monotonic()
            runs: dict[float, RealRun] = {}
            for rate, jobs in loads.items():
                runs[rate] = _undisturbed(partial(real.run_sync, pool.url, jobs, SLO), options.tries, console)
                console.print(f"{rate:g} req/s of each model: {len(jobs)} requests in {runs[rate].duration_s:.0f} s")
        turns = TurnCosts.of(real.read_log(log, started_s, ended_s), profiles)
        Measured(way_s, *slowdown, turns, runs).write(options.work / MEASURED)


def _undisturbed(run: Callable[[], RealRun], tries: int, console: Console) -> RealRun:
    """The run that others disturbed least, of at most ``tries``; the first one that nobody did is enough."""
    runs: list[RealRun] = []
    while len(runs) < tries and not any(each.other_cores <= QUIET_CORES for each in runs):
        runs.append(run())
        if runs[-1].other_cores > QUIET_CORES:
            console.print(f"others used {runs[-1].other_cores:.2f} cores meanwhile")
    return min(runs, key=lambda each: each.other_cores)


def _run(options: argparse.Namespace, console: Console) -> int:
    models = real.ensure_models(options.work / "models")
    profiles = _profile(models, options, console)
    loads = {rate: make_jobs(list(models), rate, options.seconds, options.seed) for rate in options.rates}
    if not options.reuse:
        _measure(models, profiles, loads, options, console)
    measured = Measured.read(options.work / MEASURED)
    runs = measured.runs
    if any(len(run.records) != len(loads.get(rate, ())) for rate, run in runs.items()):
        raise UsageError(f"{options.work / MEASURED} is of other loads; run without --reuse, or with the same options")
    told_s = median(entry.hand_over_s or 0.0 for entry in profiles.values())
    turns = measured.turns
    machine = Machine(
        turns.hand_over_s,
        told_s,
        turns.prefill_ratio,
        turns.decode_ratio,
        max(0.0, measured.way_s - turns.hand_over_s),
    )
    console.print(
        f"in the pool prefill steps take {turns.prefill_ratio:.2f}x, decode steps {turns.decode_ratio:.2f}x as long as "
        f"in the profiles; a turn takes {turns.hand_over_s * 1e3:.1f} ms beside its steps"
    )
    rows = [
        Comparison(
            rate,
            len(jobs),
            failures(runs[rate].records).total(),
            runs[rate].own_cores,
            runs[rate].other_cores,
            Outcome.of(runs[rate].records),
            Outcome.of(simulate(jobs, SLO, profiles, machine)),
        )
        for rate, jobs in loads.items()
        if rate in runs
    ]
    console.print(comparison_table(rows))
    _write(rows, machine, measured, options)
    console.print(f"written to {options.out / 'fidelity.json'} and {options.out / 'fidelity.png'}")
    return 0


def _write(rows: Sequence[Comparison], machine: Machine, measured: Measured, options: argparse.Namespace) -> None:
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        "device": local_cpu(real.THREADS).description,
        "slo": asdict(SLO),
        "machine": {
            **machine.as_dict(),
            "slowdown_of_prefill_beside_decode": measured.slowdown_prefill,
            "slowdown_of_decode_beside_prefill": measured.slowdown_decode,
        },
        "loads": [
            {
                **asdict(row),
                "attainment_points": row.attainment_points,
                "ttft_error": row.ttft_error,
                "tpot_error": row.tpot_error,
                "within": row.within,
            }
            for row in rows
        ],
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "fidelity.json").write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    draw(rows, options.out / "fidelity.png")


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="fidelity.py", description="The simulator beside the real pool.")
    parser.add_argument("--rates", type=amount, nargs="+", default=list(RATES), help="requests per second and model")
    parser.add_argument("--seconds", type=amount, default=40.0, help="of arrivals of each load  [40]")
    parser.add_argument("--tries", type=int, default=2, help="of each load, where others disturb it  [2]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reuse", action="store_true", help="simulate anew, beside what was measured the last time")
    parser.add_argument("--work", type=Path, default=CACHE_DIR / "fidelity", help="models and their profiles")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line: 0, 2 where it could not be done, 130 after Ctrl-C."""
    options = parse_options(arguments)
    console = make_console()
    configure_logs(None)
    try:
        return run_to_end(lambda: _run(options, console))
    except (ProfilingError, PoolError, UsageError, OSError) as error:
        sys.stderr.write(f"fidelity.py: {error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
