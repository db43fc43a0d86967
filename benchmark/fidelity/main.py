"""Compares the simulator with the real pool on this machine: the same requests, several loads, one of them too much.

    python -m benchmark.fidelity [--policies slack aegaeon] [--rates 0.125 0.25 0.375 0.5 1.25 2] [--rounds 3]

Each policy is served and simulated, one after the other: a load is compared with itself, under the same policy. Four
small models are profiled here (``aegaeon profile``), then served by one instance of a thread, so that on two cores it
has one for itself, as a device has. The simulator gets the profiles, and constants of the machine that are measured
here on short loads of their own (other requests at the same rate), one before and one after each load that is
compared: the way of a request to the pool and back, what a turn takes beside its steps, how much slower steps are in a
pool than in the profile, and what a step that does both saves. The rate is the same because these depend on it: the
driver, the server and the clients share a core, so that handing over takes 2 ms where they are idle and 10 ms where
hundreds of tokens pass through them each second. The machine is shared, and its speed changes by a tenth and more
within half a minute; therefore a load's constants are of the loads beside it, those of all its rounds together.
Nothing of this *prediction* is fitted to the loads that are compared.

What the machine then did in the load itself cannot be known beforehand. So the load is simulated a second time, *at the
machine's speed*: everything that the instance computes takes as much longer as the steps of that very round took, all
together, than predicted (one number a round). What is left then is the simulator's own error: who is served when, in
which batches, for how long.

A pool near saturation is chaotic: a few milliseconds decide who is next, and single requests come out very differently
from one run to the next. Therefore each load has several rounds, with other requests each time, which are taken
together; loads of higher rates are shorter; and lengths are such
that a reply takes many turns. (With replies that fit into one, TPOT is either that of one turn or includes a round of
all models, and in the simulator the median jumped by up to 30 % where steps took 5 % longer; with these it is 2 to
14 %.)
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, product
from pathlib import Path
from statistics import median

from rich.console import Console

from aegaeon.cli.terminal.console import make_console
from aegaeon.core.profile import LatencyProfile
from aegaeon.core.slo import Slo
from aegaeon.device.common.local_cpu import local_cpu
from aegaeon.latency.files.profile_book import ProfileEntry
from aegaeon.scheduler.policies.registry import POLICIES as REGISTERED
from aegaeon.workload import QuantileTable, SyntheticSpec, synthesize
from benchmark.command.errors import BenchmarkUsageError
from benchmark.command.main import add_measuring_options, amount, draw_result, run_measuring
from benchmark.command.result_file import write_result
from benchmark.e2e.job import LengthLimits, ReplayJob, TargetModel, plan_jobs
from benchmark.e2e.pool import PoolProcess
from benchmark.e2e.results import failures
from benchmark.e2e.small_models import CACHE_DIR
from benchmark.fidelity import pool as real
from benchmark.fidelity.measured import Measured, MeasuredLoad, RealRun
from benchmark.fidelity.report import Comparison, LoadOutcome, Simulated, comparison_table, machine_table
from benchmark.fidelity.simulated import MeasuredMachine, simulate
from benchmark.fidelity.turns import TurnCosts, way_s

POLICIES = ("slack", "aegaeon")
RATES = (0.125, 0.25, 0.375, 0.5, 1.25, 2.0)  # requests per second of each model
REQUESTS = 48  # of a load and round, about, within these durations
LEAST_SECONDS, MOST_SECONDS = 16.0, 48.0
OWN_REQUESTS, OWN_LEAST_SECONDS, OWN_SEEDS = 8, 3.0, 1000  # of the loads that turns are measured on
SLO = Slo(2.0, 0.15)
LIMITS = LengthLimits(320, 320)
QUIET_CORES = 0.1  # what others may use without disturbing


def make_jobs(names: Sequence[str], rate_per_s: float, seconds: float, seed: int) -> list[ReplayJob]:
    """A load: Poisson arrivals of every model, ShareGPT-like lengths with prompts scaled to small models."""
    spec = SyntheticSpec(len(names), rate_per_s, seconds, input_scale=0.2, seed=seed)
    served = [TargetModel(name, real.CONTEXT_TOKENS) for name in names]
    return plan_jobs(synthesize(spec, QuantileTable.shipped()), served, LIMITS)


def _seconds(rate_per_s: float, models: int) -> float:
    """How long requests of a load go on arriving."""
    return min(MOST_SECONDS, max(LEAST_SECONDS, REQUESTS / (rate_per_s * models)))


def _profile(models: Mapping[str, Path], options: argparse.Namespace, console: Console) -> dict[str, ProfileEntry]:
    console.print("profiling (what was measured before is kept) ...")
    real.profile(models, options.work / "profiles")
    return real.profiles(options.work / "profiles", local_cpu(real.THREADS).name, list(models))


def _measure(
    policy: str,
    models: Mapping[str, Path],
    profiles: Mapping[str, ProfileEntry],
    loads: Mapping[float, list[list[ReplayJob]]],
    options: argparse.Namespace,
    console: Console,
    awake: frozenset[int],
) -> None:
    """The machine's constants, and what came of each load, into a file."""
    with tempfile.TemporaryDirectory(prefix="aegaeon-fidelity-") as scratch:
        cache_bytes = 8 * sum(entry.weight_bytes for entry in profiles.values())  # room to pack all hot weights
        log = options.work / f"events-{policy}.jsonl"
        log.unlink(missing_ok=True)
        arguments = real.serve_arguments(policy, models, options.work / "profiles", cache_bytes, log)
        with PoolProcess(arguments, Path(scratch) / "pool.log") as pool:
            real.warm_up(pool.url, list(models), real.WARM_PROMPTS, new_tokens=24)
            runs: list[tuple[float, _Timed]] = []
            own: list[_Timed] = []
            for index, (rate, rounds) in product(range(options.rounds), loads.items()):
                own.append(_run_own(pool.url, models, rate, options.seed + len(own), awake))
                runs.append((rate, _timed(pool.url, rounds[index], awake)))
                own.append(_run_own(pool.url, models, rate, options.seed + len(own), awake))
                console.print(f"{policy}, {_progress(index, rate, runs[-1][1].run)}")
        told = {name: entry.profile for name, entry in profiles.items()}
        _read_costs(runs, own, log, told).write(_measured_file(options, policy))


@dataclass(frozen=True, slots=True)
class _Timed:
    """A run, and when it was; times of the monotonic clock."""

    span_s: tuple[float, float]
    run: RealRun


def _timed(url: str, jobs: Sequence[ReplayJob], awake: frozenset[int]) -> _Timed:
    start_s = time.monotonic()
    run = real.replay(url, jobs, SLO, awake)
    return _Timed((start_s, time.monotonic()), run)


def _run_own(url: str, models: Mapping[str, Path], rate_per_s: float, seed: int, awake: frozenset[int]) -> _Timed:
    seconds = max(OWN_LEAST_SECONDS, OWN_REQUESTS / (rate_per_s * len(models)))
    return _timed(url, make_jobs(list(models), rate_per_s, seconds, OWN_SEEDS + seed), awake)


def _read_costs(
    runs: Sequence[tuple[float, _Timed]], own: Sequence[_Timed], log: Path, profiles: Mapping[str, LatencyProfile]
) -> Measured:
    """Each load with the costs that were measured beside it: own load 2i came before run i, 2i + 1 after it."""
    own_logs = real.read_log(log, [each.span_s for each in own])
    run_logs = real.read_log(log, [each.span_s for _, each in runs])
    loads = {}
    for rate in dict.fromkeys(rate for rate, _ in runs):
        places = [index for index, (each, _) in enumerate(runs) if each == rate]
        beside = [2 * place + after for place in places for after in (0, 1)]
        turns = TurnCosts.of(chain.from_iterable(own_logs[index] for index in beside), profiles)
        ways_s = [way_s(own_logs[index], own[index].run.records) for index in beside]
        slowness = [turns.slowness(run_logs[place], profiles) for place in places]
        loads[rate] = MeasuredLoad(median(ways_s), turns, slowness, [runs[place][1].run for place in places])
    return Measured(loads)


def _progress(index: int, rate: float, run: RealRun) -> str:
    what = f"round {index + 1}, {rate:g} req/s of each model: {len(run.records)} requests in {run.duration_s:.0f} s"
    return f"{what}; others used {run.other_cores:.2f} cores" if run.other_cores > QUIET_CORES else what


def _measured_file(options: argparse.Namespace, policy: str) -> Path:
    return Path(options.work) / f"measured-{policy}.json"


def _run(options: argparse.Namespace, console: Console, awake: frozenset[int]) -> int:
    absent = [file for policy in options.policies if not (file := _measured_file(options, policy)).is_file()]
    if options.reuse and absent:
        raise BenchmarkUsageError(f"there is no {absent[0]} to use again; run without --reuse first")
    models = real.ensure_models(options.work / "models")
    profiles = _profile(models, options, console)
    seeds = range(options.seed, options.seed + options.rounds)
    loads = {
        rate: [make_jobs(list(models), rate, _seconds(rate, len(models)), seed) for seed in seeds]
        for rate in options.rates
    }
    found: dict[str, list[Comparison]] = {}
    for policy in options.policies:
        if not options.reuse:
            _measure(policy, models, profiles, loads, options, console, awake)
        found[policy] = _compare_all(policy, loads, profiles, options)
        console.print(machine_table(policy, found[policy]))
        console.print(comparison_table(policy, found[policy]))
    _write(found, options, console)
    return 0


def _compare_all(
    policy: str,
    loads: Mapping[float, list[list[ReplayJob]]],
    profiles: Mapping[str, ProfileEntry],
    options: argparse.Namespace,
) -> list[Comparison]:
    """A row per load: what the pool did under the policy, and what the simulator says of the same."""
    file = _measured_file(options, policy)
    measured = _read_measured(file)
    _require_same(measured, loads, file)
    told_s = median(entry.hand_over_s or 0.0 for entry in profiles.values())
    return [_compare(policy, rate, measured.loads[rate], rounds, profiles, told_s) for rate, rounds in loads.items()]


def _read_measured(path: Path) -> Measured:
    try:
        return Measured.read(path)
    except (ValueError, KeyError, TypeError) as error:
        raise BenchmarkUsageError(f"{path} is not what this version writes; run without --reuse") from error


def _require_same(measured: Measured, loads: Mapping[float, list[list[ReplayJob]]], file: Path) -> None:
    """What was measured the last time must be of these loads."""
    sent = {rate: [len(run.records) for run in load.runs] for rate, load in measured.loads.items()}
    if sent != {rate: [len(jobs) for jobs in rounds] for rate, rounds in loads.items()}:
        raise BenchmarkUsageError(f"{file} is of other loads; run without --reuse, or with the same options")


def _compare(
    policy: str,
    rate_per_s: float,
    load: MeasuredLoad,
    rounds: Sequence[Sequence[ReplayJob]],
    profiles: Mapping[str, ProfileEntry],
    told_hand_over_s: float,
) -> Comparison:
    machine = MeasuredMachine(load.turns, told_hand_over_s, load.way_s)
    predicted = [simulate(policy, jobs, SLO, profiles, machine) for jobs in rounds]
    at_speed = [
        simulate(policy, jobs, SLO, profiles, machine.slower(slowness))
        for jobs, slowness in zip(rounds, load.slowness, strict=True)
    ]
    records = [record for run in load.runs for record in run.records]
    outcome = LoadOutcome.of(records)
    return Comparison(
        rate_per_s * len(profiles),
        len(records),
        failures(records).total(),
        median(run.own_cores for run in load.runs),
        max(run.other_cores for run in load.runs),
        machine,
        tuple(load.slowness),
        outcome,
        Simulated.of(LoadOutcome.of(list(chain.from_iterable(predicted))), outcome),
        Simulated.of(LoadOutcome.of(list(chain.from_iterable(at_speed))), outcome),
    )


def _write(found: Mapping[str, Sequence[Comparison]], options: argparse.Namespace, console: Console) -> None:
    content = {
        "device": local_cpu(real.THREADS).description,
        "slo": asdict(SLO),
        "policies": {policy: [asdict(row) for row in rows] for policy, rows in found.items()},
    }
    write_result(options.out / "fidelity.json", "fidelity", content)
    draw_result(options.out / "fidelity.json", console)


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.fidelity", description="The simulator beside the real pool."
    )
    parser.add_argument(
        "--policies", nargs="+", choices=sorted(REGISTERED), default=list(POLICIES), help="served and simulated"
    )
    parser.add_argument("--rates", type=amount, nargs="+", default=list(RATES), help="requests per second and model")
    parser.add_argument("--reuse", action="store_true", help="simulate anew, beside what was measured the last time")
    add_measuring_options(parser, 3, CACHE_DIR / "fidelity")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line: 0, 2 where it could not be done, 130 after Ctrl-C."""
    options, console = parse_options(arguments), make_console()
    return run_measuring("fidelity", lambda awake: _run(options, console, awake))
