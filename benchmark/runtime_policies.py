"""Compares policies on the real CPU runtime: the same requests on the same pool, at several loads.

    python3 benchmark/runtime_policies.py [--rates 1 2 3] [--seconds 45] [--rounds 2]

Eight small models on one instance whose device pages hold three (``policies/real_pool.py``), profiled here, so that
every policy knows their costs. Each load is replayed under each policy on a fresh pool, A B C in one round and C B A in
the next, because the machine's speed drifts; every round has requests of its own. ``sllm`` stands for request-level
switching: a model runs until all of its requests are done.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median

if not __package__:  # run as a script: the folder above has the packages
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from rich.console import Console
from rich.table import Table

from aegaeon.cli.terminal.console import make_console
from aegaeon.core.slo import Slo
from aegaeon.device.common.local_cpu import local_cpu
from aegaeon.metrics import RunMetrics
from aegaeon.scheduler.policies.registry import POLICIES as REGISTERED
from benchmark.command.main import add_measuring_options, amount, draw_result, run_measuring
from benchmark.command.result_file import write_result
from benchmark.e2e.small_models import CACHE_DIR
from benchmark.policies import real_pool as real

POLICIES = ("slack", "aegaeon", "sllm")
RATES = (1.0, 2.0, 3.0)  # requests per second of all models together
SLO = Slo(4.0, 0.15)


@dataclass(frozen=True, slots=True)
class PolicyOutcome:
    """What came of one load under one policy; of several rounds, the medians.

    ``worst_model``: attainment of the model that has the least. ``other_cores`` were busy with what has nothing to do
    with it.
    """

    attainment: float
    worst_model: float
    ttft_p50_s: float
    tpot_p50_s: float
    tokens_per_s: float
    turns: float
    switches: float
    loads: float
    failed: float
    other_cores: float

    @classmethod
    def of(cls, leg: real.Leg) -> PolicyOutcome:
        seen = RunMetrics.of(leg.records)
        return cls(
            seen.slo_attainment,
            seen.worst_model,
            seen.ttft_s.p50,
            seen.tpot_s.p50,
            seen.tokens / leg.duration_s,
            leg.commands.turns,
            leg.commands.switches,
            leg.commands.loads,
            seen.failed,
            leg.other_cores,
        )

    @classmethod
    def median_of(cls, outcomes: Sequence[PolicyOutcome]) -> PolicyOutcome:
        return cls(*(median(getattr(each, field.name) for each in outcomes) for field in fields(cls)))


Outcomes = Mapping[float, Mapping[str, Sequence[PolicyOutcome]]]
"""By load (requests per second) and policy, one a round."""


def order(policies: Sequence[str], index: int) -> list[str]:
    """The order of a round: forth and back."""
    return list(policies if index % 2 == 0 else reversed(policies))


def outcome_table(outcomes: Outcomes) -> Table:
    """A row per load and policy: the medians."""
    table = Table(title=f"{real.MODELS} models on one CPU instance that holds {real.RESIDENT_MODELS}; medians")
    heads = ("req/s", "policy", "on time", "worst\nmodel", "TTFT p50\n(ms)", "TPOT p50\n(ms)", "tokens/s")
    for head in (*heads, "turns", "switches", "loads", "failed", "cores\nof others"):
        table.add_column(head, justify="left" if head == "policy" else "right")
    for rate, by_policy in outcomes.items():
        for policy, rounds in by_policy.items():
            table.add_row(f"{rate:g}", policy, *_cells(PolicyOutcome.median_of(rounds)))
        table.add_section()
    return table


def _cells(outcome: PolicyOutcome) -> list[str]:
    return [
        f"{outcome.attainment:.1%}",
        f"{outcome.worst_model:.1%}",
        f"{outcome.ttft_p50_s * 1e3:.0f}",
        f"{outcome.tpot_p50_s * 1e3:.1f}",
        f"{outcome.tokens_per_s:.0f}",
        f"{outcome.turns:.0f}",
        f"{outcome.switches:.0f}",
        f"{outcome.loads:.0f}",
        f"{outcome.failed:.0f}",
        f"{outcome.other_cores:.2f}",
    ]


def _measure(options: argparse.Namespace, console: Console, awake: frozenset[int]) -> Outcomes:
    models = real.ensure_models(options.work / "models")
    console.print("profiling (what was measured before is kept) ...")
    profiles = options.work / "profiles"
    real.profile(models, profiles)
    outcomes: dict[float, dict[str, list[PolicyOutcome]]] = {
        rate: {policy: [] for policy in options.policies} for rate in options.rates
    }
    for index in range(options.rounds):
        for rate in options.rates:
            jobs = real.make_jobs(list(models), rate, options.seconds, options.seed + index)
            for policy in order(options.policies, index):
                outcome = PolicyOutcome.of(real.run_leg(policy, models, profiles, jobs, SLO, awake))
                outcomes[rate][policy].append(outcome)
                console.print(f"round {index + 1}, {rate:g} req/s, {policy}: {outcome.attainment:.1%} on time")
    return outcomes


def _run(options: argparse.Namespace, console: Console, awake: frozenset[int]) -> int:
    outcomes = _measure(options, console, awake)
    console.print(outcome_table(outcomes))
    _write(outcomes, options, console)
    return 0


def _write(outcomes: Outcomes, options: argparse.Namespace, console: Console) -> None:
    content = {
        "device": local_cpu(real.THREADS, copying=True).description,
        "models": real.MODELS,
        "resident_models": real.RESIDENT_MODELS,
        "slo": asdict(SLO),
        "seconds": options.seconds,
        "seeds": [options.seed + index for index in range(options.rounds)],
        "loads": [
            {
                "requests_per_s": rate,
                "policies": {
                    policy: {
                        "median": asdict(PolicyOutcome.median_of(rounds)),
                        "rounds": [asdict(each) for each in rounds],
                    }
                    for policy, rounds in by_policy.items()
                },
            }
            for rate, by_policy in outcomes.items()
        ],
    }
    write_result(options.out / "runtime_policies.json", "runtime policies", content)
    draw_result(options.out / "runtime_policies.json", console)


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="runtime_policies.py", description="Policies beside each other, for real.")
    parser.add_argument("--policies", nargs="+", choices=list(REGISTERED), default=list(POLICIES), metavar="NAME")
    parser.add_argument(
        "--rates", type=amount, nargs="+", default=list(RATES), help="requests per second of all models"
    )
    parser.add_argument("--seconds", type=amount, default=45.0, help="of arrivals of each load  [45]")
    add_measuring_options(parser, 2, CACHE_DIR / "runtime-policies")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line: 0, 2 where it could not be done, 130 after Ctrl-C."""
    options, console = parse_options(arguments), make_console()
    return run_measuring("runtime_policies.py", lambda awake: _run(options, console, awake))


if __name__ == "__main__":
    sys.exit(main())
