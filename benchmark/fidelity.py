"""Compares the simulator with the real pool on this machine: the same requests, several loads, one of them too much.

    python3 benchmark/fidelity.py [--rates 0.125 0.25 0.375 0.5 1.25 2] [--seconds 30] [--rounds 3]

Four small models are profiled here (``aegaeon profile``), then served by one instance of a thread, so that on two cores
it has one for itself, as a device has. The simulator gets the profiles, and constants of the machine that are measured
here on short loads of their own (other requests), one before every third of the loads that are compared: the way of a
request to the pool and back, what a turn takes beside its steps, how much slower steps are in a pool than in the
profile, and what a step that does both saves. All of these together give the constants: the machine is shared, and its
speed changes by a tenth and more within half a minute, so that one measurement tells little of the next. Nothing is
fitted to the loads that are compared.

A pool near saturation is chaotic: a few milliseconds decide who is next, and single requests come out very differently
from one run to the next. Therefore each load has several rounds, with other requests each time, which are taken
together; and lengths are such that a reply takes many turns. (With replies that fit into one, TPOT is either that of
one turn or includes a round of all models, and in the simulator the median jumped by up to 30 % where steps took 5 %
longer; with these it is 2 to 14 %.)

Does not know: how either side works.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import chain, product
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
from benchmark.awake import awake_cores
from benchmark.e2e_options import amount, count
from benchmark.fidelity_measured import Measured, RealRun
from benchmark.fidelity_sim import Machine, simulate
from benchmark.fidelity_turns import TurnCosts, way_s
from benchmark.interrupt import run_to_end
from benchmark.job import Job, LengthLimits, ServedModel, plan_jobs
from benchmark.pool import PoolError
from benchmark.results import failures
from benchmark.small_models import CACHE_DIR
from benchmark.usage import UsageError

RATES = (0.125, 0.25, 0.375, 0.5, 1.25, 2.0)  # requests per second of each model
OWN_RATE, OWN_SECONDS, OWN_SEEDS = 4.0, 2.0, 1000  # of the loads that turns are measured on
OWN_EVERY = 3  # loads
SLO = Slo(2.0, 0.15)
LIMITS = LengthLimits(320, 320)
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
    """One load on both sides, all rounds together. ``failed`` requests are the real pool's.

    ``rounds``: measured and simulated of each. ``own_cores`` were busy with the pool and its clients, ``other_cores``
    with what has nothing to do with it (the most in a round).
    """

    rate_per_s: float
    requests: int
    failed: int
    own_cores: float
    other_cores: float
    measured: Outcome
    simulated: Outcome
    rounds: tuple[tuple[Outcome, Outcome], ...]

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
    """A load: Poisson arrivals of every model, ShareGPT-like lengths with prompts scaled to small models."""
    spec = SyntheticSpec(len(names), rate_per_s, seconds, input_scale=0.2, seed=seed)
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
    loads: Mapping[float, list[list[Job]]],
    options: argparse.Namespace,
    console: Console,
    awake: frozenset[int],
) -> None:
    """The machine's constants, and what came of each load, into a file."""
    with tempfile.TemporaryDirectory(prefix="aegaeon-fidelity-") as scratch:
        cache_bytes = 8 * sum(entry.weight_bytes for entry in profiles.values())  # room to pack all hot weights
        log = options.work / "events.jsonl"
        log.unlink(missing_ok=True)
        arguments = real.serve_arguments(models, options.work / "profiles", cache_bytes, log)
        with real.pool(arguments, Path(scratch) / "pool.log") as pool:
            asyncio.run(real.warm_up(pool.url, list(models)))
            runs: dict[float, list[RealRun]] = {rate: [] for rate in loads}
            own: list[_OwnLoad] = []
            for done, (index, (rate, rounds)) in enumerate(product(range(options.rounds), loads.items())):
                if done % OWN_EVERY == 0:
                    own.append(_run_own(pool.url, models, options.seed + len(own), awake))
                runs[rate].append(real.run_sync(pool.url, rounds[index], SLO, awake))
                console.print(_progress(index, rate, runs[rate][-1]))
            own.append(_run_own(pool.url, models, options.seed + len(own), awake))
        logs = real.read_log(log, [(load.start_s, load.end_s) for load in own])
        told = {name: entry.profile for name, entry in profiles.items()}
        turns = TurnCosts.of(chain.from_iterable(logs), told)
        ways_s = [way_s(entries, load.records) for entries, load in zip(logs, own, strict=True)]
        Measured(median(ways_s), turns, runs).write(options.work / MEASURED)


@dataclass(frozen=True, slots=True)
class _OwnLoad:
    """One that turns are measured on; times of the monotonic clock."""

    start_s: float
    end_s: float
    records: Sequence[RequestRecord]


def _run_own(url: str, models: Mapping[str, Path], seed: int, awake: frozenset[int]) -> _OwnLoad:
    start_s = time.monotonic()
    jobs = make_jobs(list(models), OWN_RATE, OWN_SECONDS, OWN_SEEDS + seed)
    records = real.run_sync(url, jobs, SLO, awake).records
    return _OwnLoad(start_s, time.monotonic(), records)


def _progress(index: int, rate: float, run: RealRun) -> str:
    what = f"round {index + 1}, {rate:g} req/s of each model: {len(run.records)} requests in {run.duration_s:.0f} s"
    return f"{what}; others used {run.other_cores:.2f} cores" if run.other_cores > QUIET_CORES else what


def _run(options: argparse.Namespace, console: Console, awake: frozenset[int]) -> int:
    if options.reuse and not (options.work / MEASURED).is_file():
        raise UsageError(f"there is no {options.work / MEASURED} to use again; run without --reuse first")
    models = real.ensure_models(options.work / "models")
    profiles = _profile(models, options, console)
    seeds = range(options.seed, options.seed + options.rounds)
    loads = {rate: [make_jobs(list(models), rate, options.seconds, seed) for seed in seeds] for rate in options.rates}
    if not options.reuse:
        _measure(models, profiles, loads, options, console, awake)
    measured = Measured.read(options.work / MEASURED)
    _require_same(measured, loads, options)
    told_s = median(entry.hand_over_s or 0.0 for entry in profiles.values())
    turns = measured.turns
    machine = Machine(turns, told_s, measured.way_s)
    console.print(
        f"in the pool a prefill step takes {turns.prefill_ratio:.2f} times what the profiles say and "
        f"{turns.prompt_s * 1e3:.1f} ms, a decode step {turns.decode_ratio:.2f} times and {turns.member_s * 1e3:.2f} "
        f"ms for each member, a turn {turns.hand_over_s * 1e3:.1f} ms beside its steps; a step that does both saves "
        f"{turns.mixed_overlap:.0%} of the smaller fixed cost; a request and its reply are {measured.way_s * 1e3:.1f} "
        f"ms on their way"
    )
    rows = [
        _compare(rate, measured.runs[rate], [simulate(jobs, SLO, profiles, machine) for jobs in rounds])
        for rate, rounds in loads.items()
    ]
    console.print(comparison_table(rows))
    _write(rows, machine, options)
    console.print(f"written to {options.out / 'fidelity.json'} and {options.out / 'fidelity.png'}")
    return 0


def _require_same(measured: Measured, loads: Mapping[float, list[list[Job]]], options: argparse.Namespace) -> None:
    """What was measured the last time must be of these loads."""
    sent = {rate: [len(run.records) for run in runs] for rate, runs in measured.runs.items()}
    if sent != {rate: [len(jobs) for jobs in rounds] for rate, rounds in loads.items()}:
        raise UsageError(f"{options.work / MEASURED} is of other loads; run without --reuse, or with the same options")


def _compare(rate_per_s: float, runs: Sequence[RealRun], simulated: Sequence[list[RequestRecord]]) -> Comparison:
    records = [record for run in runs for record in run.records]
    rounds = zip(runs, simulated, strict=True)
    return Comparison(
        rate_per_s,
        len(records),
        failures(records).total(),
        median(run.own_cores for run in runs),
        max(run.other_cores for run in runs),
        Outcome.of(records),
        Outcome.of([record for each in simulated for record in each]),
        tuple((Outcome.of(run.records), Outcome.of(each)) for run, each in rounds),
    )


def _write(rows: Sequence[Comparison], machine: Machine, options: argparse.Namespace) -> None:
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        "device": local_cpu(real.THREADS).description,
        "slo": asdict(SLO),
        "machine": machine.as_dict(),
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
    parser.add_argument("--seconds", type=amount, default=30.0, help="of arrivals of each load and round  [30]")
    parser.add_argument("--rounds", type=count, default=3, help="of all loads, with other requests each time  [3]")
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
        with awake_cores() as awake:
            return run_to_end(lambda: _run(options, console, awake))
    except (ProfilingError, PoolError, UsageError, OSError) as error:
        sys.stderr.write(f"fidelity.py: {error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
