"""What to replay: a trace, a workload file, or a synthetic workload made on the spot."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from aegaeon.core.slo import Slo
from aegaeon.run_header import Load
from aegaeon.workload import Arrival, SyntheticSpec, default_lengths, read_trace, spread, synthesize
from benchmark.command.errors import BenchmarkUsageError

DEFAULT_MODELS = 8
DEFAULT_DURATION_S = 120.0
_WORKLOAD_NAME = re.compile(r"synth-(\d+)-([\d.]+)-([\d.]+)-([\d.]+)\.csv(?:\.gz)?")


@dataclass(frozen=True, slots=True)
class Plan:
    """Arrivals, what names the record file, and where they come from. ``load``: None where it is no synthetic one."""

    arrivals: list[Arrival]
    label: str
    origin: str
    load: Load | None

    @property
    def models(self) -> int:
        """How many models it names."""
        return len({arrival.model for arrival in self.arrivals})


def plan_of(options: argparse.Namespace) -> Plan:
    """The plan that the command line names, its times scaled, cut to its duration. Raises ``BenchmarkUsageError``."""
    plan = _trace_plan(options) if options.trace else _synthetic_plan(options)
    end_s = options.duration or float("inf")
    scaled = [replace(arrival, time_s=arrival.time_s * options.time_scale) for arrival in plan.arrivals]
    kept = [arrival for arrival in scaled if arrival.time_s < end_s]
    if not kept:
        raise BenchmarkUsageError(f"nothing to replay: {plan.origin} has no request within the duration")
    return replace(plan, arrivals=kept)


def _trace_plan(options: argparse.Namespace) -> Plan:
    arrivals = [
        replace(
            arrival,
            input_tokens=max(1, round(arrival.input_tokens * options.inlen_scale)),
            output_tokens=max(1, round(arrival.output_tokens * options.outlen_scale)),
        )
        for arrival in read_trace(options.trace, options.trace_unit)
    ]
    if options.num_models and len({arrival.model for arrival in arrivals}) == 1:
        names = [f"model_{index:02d}" for index in range(options.num_models)]
        arrivals = spread(arrivals, names, options.seed or 0)
    label = options.trace.name.removesuffix(".gz").removesuffix(".csv").removesuffix(".jsonl").removeprefix("synth-")
    return Plan(arrivals, label, str(options.trace), _load_of_file(options.trace))


def _synthetic_plan(options: argparse.Namespace) -> Plan:
    spec = SyntheticSpec(
        models=options.num_models or DEFAULT_MODELS,
        rate_per_s=options.arrival_rate,
        duration_s=(options.duration or DEFAULT_DURATION_S) / options.time_scale,
        input_scale=options.inlen_scale,
        output_scale=options.outlen_scale,
        seed=options.seed or 0,
    )
    load = Load.of(spec.models, spec.rate_per_s, spec.input_scale, spec.output_scale)
    file = options.workloads / spec.file_name
    if file.is_file() and options.seed is None and options.duration is None:
        return Plan(read_trace(file), spec.label, str(file), load)
    lengths = default_lengths(os.environ)
    origin = f"synthetic {spec.label}, {spec.duration_s:g} s, seed {spec.seed}; lengths: {lengths.description}"
    return Plan(synthesize(spec, lengths), spec.label, origin, load)


def _load_of_file(path: Path) -> Load | None:
    """What a workload file of this project, ``synth-<models>-<rate>-<inlen>-<outlen>.csv``, is called after."""
    matched = _WORKLOAD_NAME.fullmatch(path.name)
    return Load.of(int(matched[1]), *map(float, matched.groups()[1:])) if matched else None


def slo_of(environment: Mapping[str, str]) -> Slo:
    """The targets of AEGAEON_TTFT_SLO and AEGAEON_TPOT_SLO, in seconds. Raises ``BenchmarkUsageError``."""
    default = Slo()
    try:
        return Slo(
            ttft_s=float(environment.get("AEGAEON_TTFT_SLO") or default.ttft_s),
            tpot_s=float(environment.get("AEGAEON_TPOT_SLO") or default.tpot_s),
        )
    except ValueError as error:
        raise BenchmarkUsageError(f"AEGAEON_TTFT_SLO and AEGAEON_TPOT_SLO must be positive seconds: {error}") from error
