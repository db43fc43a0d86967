"""The command line of ``python3 -m sim.simulate``: the artifact's options word for word, and ours."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from aegaeon.core.config import PREFIX_CACHE
from aegaeon.core.slo import Slo
from aegaeon.latency.files.shipped import shipped_profiles
from aegaeon.memory.eviction import EVICTIONS
from aegaeon.settings.sizes import parse_bytes
from aegaeon.workload import TIME_UNITS, SyntheticSpec
from sim.records.output import sweep_file_name
from sim.study.hardware import HardwareOptions
from sim.study.scenario import MAX_CONTEXT_TOKENS, SIMULATOR_MIX
from sim.study.sweep import TRACE_SESSION_RATE_PER_S, Point, Setting, WorkloadChoice
from sim.systems.errors import InputError
from sim.systems.systems import DEFAULT_SYSTEMS, PAPER_SYSTEMS, SYSTEMS, find_system
from sim.workloads.sessions import SESSIONS_DURATION_S, SessionSpec

_REPEATED = re.compile(r"(\d+)x(\S+)")


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """One output file: its points, and the axes that its name tells."""

    file_name: str
    points: tuple[Point, ...]


def parser(program: str = "sim.simulate") -> argparse.ArgumentParser:
    """All options."""
    made = argparse.ArgumentParser(
        prog=program,
        description="Simulate serving systems on one virtual pool: the production scheduler and baselines.",
    )
    load = made.add_argument_group("load")
    load.add_argument("--num-models", "--num-model", type=int, nargs="+", metavar="N")
    load.add_argument("--arrival-rate", type=float, nargs="+", metavar="R", help="req/s per model")
    load.add_argument(
        "--session-rate",
        type=float,
        nargs="+",
        metavar="R",
        help="conversations/s per model that begin, in place of --arrival-rate; of a trace of conversations: in all",
    )
    load.add_argument("--inlen-scale", type=float, default=1.0, metavar="X")
    load.add_argument("--outlen-scale", type=float, default=1.0, metavar="X")
    load.add_argument(
        "--duration", type=float, metavar="S", help="of generated workloads; default 120 up to 0.1 req/s, else 60"
    )
    load.add_argument(
        "--seed", type=int, help="of generated workloads, default 0; where it is given no file is looked for"
    )
    load.add_argument(
        "--trace", type=Path, metavar="FILE", help="a workload CSV, or a trace in one of the known formats"
    )
    load.add_argument(
        "--trace-unit", choices=list(TIME_UNITS), help="of the trace's times; default: what the trace itself tells"
    )
    load.add_argument(
        "--slo", default="1.0", metavar="X|ttft=S,tpot=S", help="a scale for both targets, or the targets"
    )
    load.add_argument(
        "--mix",
        nargs="+",
        default=list(SIMULATOR_MIX),
        metavar="MODEL",
        help="what the synthetic models are, in turn; 6xNAME repeats",
    )
    load.add_argument("--max-context", type=int, default=MAX_CONTEXT_TOKENS, metavar="TOKENS")
    pool = made.add_argument_group("pool")
    pool.add_argument(
        "--policy",
        nargs="+",
        metavar="NAME",
        help=f"of: {', '.join(SYSTEMS)}; default {' '.join(DEFAULT_SYSTEMS)}, as the artifact without slack",
    )
    pool.add_argument("--devices", nargs="+", default=["16xh100"], metavar="DEVICE", help="default 16xh100")
    pool.add_argument(
        "--nodes", type=int, default=1, metavar="N", help="the devices are spread over N nodes, each with a scheduler"
    )
    pool.add_argument("--h2d", metavar="LINK", help="host link, e.g. gen4x16, or GB/s; default: the device's")
    pool.add_argument("--swap-overhead", type=float, default=0.0, metavar="MS", help="added to every switch")
    pool.add_argument(
        "--host-memory", default="2TB", metavar="SIZE", help="for weights, per node; the rest is read from disk"
    )
    pool.add_argument(
        "--prefill-chunk", type=int, metavar="TOKENS", help="prompts go in chunks beside decoding; default whole"
    )
    pool.add_argument(
        "--prefix-cache",
        choices=[*EVICTIONS, "off"],
        default=PREFIX_CACHE,
        help="by which policy KV of ended requests gives way, where a workload has requests that begin alike; "
        "default %(default)s",
    )
    pool.add_argument(
        "--kv-disk",
        default="0GB",
        metavar="SIZE",
        help="for KV of ended requests on each node's disk, read where that takes less than computing; default none",
    )
    pool.add_argument(
        "--profile-dir", type=Path, metavar="DIR", help="latency profiles; default: those that come with aegaeon"
    )
    pool.add_argument(
        "--compat", choices=["artifact"], help="the constants, fits and semantics of the SOSP'25 artifact"
    )
    out = made.add_argument_group("output")
    out.add_argument("--out", type=Path, default=Path("plots/json"), metavar="DIR", help="default plots/json")
    out.add_argument(
        "--bound", action="store_true", help="also the bound's load; above 1 no policy keeps every deadline"
    )
    out.add_argument("--check", action="store_true", help="hold schedulers to their contract; a broken rule ends it")
    out.add_argument("--chrome-trace", type=Path, metavar="FILE", help="of one policy at one load")
    out.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes")
    return made


def make_setting(options: argparse.Namespace, environment: Mapping[str, str]) -> Setting:
    """What all points share. Raises ``InputError``."""
    artifact = options.compat == "artifact"
    if options.swap_overhead < 0 or options.max_context < 1:
        raise InputError("--swap-overhead must not be negative, --max-context must be positive")
    if options.prefill_chunk is not None and options.prefill_chunk < 1:
        raise InputError(f"--prefill-chunk must be at least 1 token, got {options.prefill_chunk}")
    hardware = HardwareOptions(
        devices=tuple(_repeated(options.devices)),
        nodes=options.nodes,
        h2d=options.h2d,
        swap_overhead_s=options.swap_overhead / 1000.0,
        host_memory_bytes=_size("--host-memory", options.host_memory),
        kv_disk_bytes=_size("--kv-disk", options.kv_disk),
        prefill_chunk_tokens=options.prefill_chunk,
        artifact=artifact,
    )
    shipped = shipped_profiles()
    profiles = options.profile_dir or (shipped / "artifact" if artifact else shipped)
    return Setting(
        hardware,
        profiles,
        tuple(_repeated(options.mix)),
        parse_slo(options.slo, environment),
        options.max_context,
        options.bound,
        options.check,
        options.prefix_cache,
    )


def make_plans(options: argparse.Namespace, slo: Slo) -> list[SweepPlan]:
    """The output files and their points. Raises ``InputError`` or ``WorkloadError``."""
    default = PAPER_SYSTEMS if options.compat == "artifact" else DEFAULT_SYSTEMS
    policies = list(dict.fromkeys(options.policy or default))
    for policy in policies:
        find_system(policy)
    if options.trace is not None:
        return [_trace_plan(options, policies)]
    given = options.session_rate or options.arrival_rate
    if not (options.num_models and given) or (options.session_rate and options.arrival_rate):
        raise InputError("give --num-models and --arrival-rate or --session-rate, or --trace FILE")
    models, rates = sorted(set(options.num_models)), sorted(set(given))
    if len(models) == 1:
        return [_sweep_plan(options, policies, models, rates, slo)]
    return [_sweep_plan(options, policies, models, [rate], slo) for rate in rates]


def parse_slo(text: str, environment: Mapping[str, str]) -> Slo:
    """``0.5`` scales the base targets (10 s, 0.1 s, or ``AEGAEON_TTFT_SLO``, ``AEGAEON_TPOT_SLO``)."""
    try:
        base = Slo(
            float(environment.get("AEGAEON_TTFT_SLO", "10.0")), float(environment.get("AEGAEON_TPOT_SLO", "0.1"))
        )
        if "=" not in text:
            return base.scaled(float(text))
        given = dict(part.split("=") for part in text.split(","))
        targets = {
            name: float(given.pop(name, default)) for name, default in (("ttft", base.ttft_s), ("tpot", base.tpot_s))
        }
        if given:
            raise ValueError(f"unknown target {', '.join(given)}")
        return Slo(targets["ttft"], targets["tpot"])
    except ValueError as error:
        raise InputError(
            f"--slo {text!r}: {error}; give a scale such as 0.5, or ttft=5,tpot=0.05 in seconds"
        ) from error


def _sweep_plan(
    options: argparse.Namespace, policies: Sequence[str], models: Sequence[int], rates: Sequence[float], slo: Slo
) -> SweepPlan:
    name = sweep_file_name(models, rates, options.inlen_scale, options.outlen_scale, slo)
    if options.session_rate:
        name = name.replace("model", "sessions", 1)
    points = [
        Point(
            rate if len(rates) > 1 else count,
            policy,
            _made(options, count, rate),
            weight=count * rate,
        )
        for rate in rates
        for count in models
        for policy in policies
    ]
    return SweepPlan(name, tuple(points))


def _made(options: argparse.Namespace, models: int, rate_per_s: float) -> WorkloadChoice:
    if options.session_rate:
        duration_s = options.duration if options.duration is not None else SESSIONS_DURATION_S
        seed, limit_tokens = options.seed or 0, options.max_context
        return WorkloadChoice(
            sessions=SessionSpec(models, rate_per_s, duration_s, seed, max_context_tokens=limit_tokens)
        )
    return WorkloadChoice(synthetic=_spec(options, models, rate_per_s), file=options.seed is None)


def _spec(options: argparse.Namespace, models: int, rate_per_s: float) -> SyntheticSpec:
    return SyntheticSpec(
        models,
        rate_per_s,
        options.duration if options.duration is not None else (120.0 if rate_per_s <= 0.1 else 60.0),
        options.inlen_scale,
        options.outlen_scale,
        options.seed or 0,
        options.max_context,
    )


def _trace_plan(options: argparse.Namespace, policies: Sequence[str]) -> SweepPlan:
    if options.arrival_rate or (options.num_models and len(options.num_models) > 1):
        raise InputError(
            "--trace has its own arrivals: leave out --arrival-rate; --num-models spreads it over N models"
        )
    models = options.num_models[0] if options.num_models else 1
    choice = WorkloadChoice(
        trace=options.trace,
        unit=options.trace_unit,
        models=models,
        seed=options.seed or 0,
        session_rate_per_s=options.session_rate[0] if options.session_rate else TRACE_SESSION_RATE_PER_S,
    )
    stem = options.trace.name.removesuffix(".gz").removesuffix(".csv").removesuffix(".jsonl")
    return SweepPlan(f"sim-trace-{stem}.json", tuple(Point(models, policy, choice) for policy in policies))


def _repeated(names: Sequence[str]) -> Iterator[str]:
    """``16xh100`` is sixteen times ``h100``."""
    for name in names:
        matched = _REPEATED.fullmatch(name)
        yield from [matched[2]] * int(matched[1]) if matched else [name]


def _size(flag: str, text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise InputError(f"{flag} {text!r} {error}") from error
