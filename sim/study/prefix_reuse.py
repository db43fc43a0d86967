"""What keeping the KV of ended requests is worth: hit rates over the size of the cache, and a market with agents.

    python3 -m sim.study.prefix_reuse --trace mooncake.jsonl.gz agents.jsonl.gz --conversations 60
    python3 -m sim.study.prefix_reuse --market 40 80 120 --session-rate 0.05

Without ``--trace`` the requests are made-up sessions (``sim/workloads/sessions.py``). Writes a file that ``python -m
plots.results FILE`` draws; what is not run again stays in it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from aegaeon.core.config import PREFIX_CACHE
from aegaeon.crossing import Crossing, CrossingKind, crossing
from aegaeon.json_file import read_object
from aegaeon.latency.files.profile_book import ProfileBook
from aegaeon.latency.files.shipped import shipped_profiles
from aegaeon.memory.eviction import EVICTIONS
from aegaeon.run_header import result_header
from aegaeon.workload import Arrival, read_trace
from sim.records.tally import Tally
from sim.study.command import make_console, make_table, run_command
from sim.study.hardware import HardwareOptions, make_hardware
from sim.study.prefix_replay import Reuse, curves, unlimited
from sim.study.run import simulate
from sim.study.scenario import Scenario, make_scenario
from sim.study.sweep import TRACE_SESSION_RATE_PER_S
from sim.systems.errors import InputError
from sim.systems.systems import find_system
from sim.workloads.conversation_trace import is_conversations, read_conversations
from sim.workloads.sessions import SessionSpec, make_sessions

REPLAYED_MODEL = "qwen2.5-7b"
MARKET_MIX = ("qwen2.5-7b",) * 3 + ("yi-1.5-9b",)
SHARES = (0.02, 0.05, 0.1, 0.2, 0.4, 0.7)
_LONGEST_CONTEXT_TOKENS = 1 << 20
_OFF = "off"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 after a complaint about options or files."""
    options = _parser().parse_args(arguments)
    return run_command("sim.study.prefix_reuse", lambda: _study(options, make_console()))


def _study(options: argparse.Namespace, console: Console) -> int:
    if min(options.shares) <= 0:
        raise InputError(f"--shares: {min(options.shares):g} is no size of a cache")
    results: dict[str, Any] = read_object(options.out) if options.out.is_file() else {}
    results |= result_header("prefix reuse")
    if options.trace or not options.market:
        results["caches"] = [_caches(name, arrivals, options, console) for name, arrivals in _workloads(options)]
    if options.market:
        results["market"] = _market(options, console)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    console.print(f"{options.out}; draw it with python -m plots.results {options.out}", soft_wrap=True)
    return 0


# --- hit rates over the size of the cache


def _workloads(options: argparse.Namespace) -> list[tuple[str, list[Arrival]]]:
    if not options.trace:
        return [("made-up sessions", make_sessions(SessionSpec(1, 0.1, 3600.0, options.seed)))]
    return [_read(path, options) for path in options.trace]


def _read(path: Path, options: argparse.Namespace) -> tuple[str, list[Arrival]]:
    name, first = path.name.partition(".")[0], options.conversations
    if not is_conversations(path):
        return name, read_trace(path)
    arrivals = read_conversations(path, TRACE_SESSION_RATE_PER_S, options.seed)
    if first is None:
        return name, arrivals
    return f"{name}, first {first} conversations", [arrival for arrival in arrivals if arrival.line <= first]


def _caches(name: str, arrivals: list[Arrival], options: argparse.Namespace, console: Console) -> dict[str, Any]:
    book = ProfileBook.open(shipped_profiles())
    scenario = make_scenario(
        arrivals, name, book, "h100", (REPLAYED_MODEL,), max_context_tokens=_LONGEST_CONTEXT_TOKENS
    )
    constants = make_hardware(HardwareOptions(), scenario.tp).constants
    most = unlimited(scenario)
    sizes = [round(share * most.kept_bytes) for share in options.shares]
    found = curves(scenario, options.policies, sizes, constants)
    console.print(_cache_table(name, scenario, most, found))
    return {
        "name": name,
        "requests": len(scenario.arrivals),
        "model": REPLAYED_MODEL,
        "prompt_tokens": most.prompt_tokens,
        "unlimited": _plain(most.kept_bytes, most),
        "curves": {policy: [_plain(*point) for point in points] for policy, points in found.items()},
    }


def _plain(cache_bytes: int, reuse: Reuse) -> dict[str, Any]:
    return {
        "cache_bytes": cache_bytes,
        "hit_rate": reuse.hit_rate,
        "found_tokens": reuse.found_tokens,
        "evicted_bytes": reuse.evicted_bytes,
    }


def _cache_table(name: str, scenario: Scenario, most: Reuse, found: Mapping[str, Sequence[tuple[int, Reuse]]]) -> Table:
    title = (
        f"{name}: {len(scenario.arrivals):,} requests, {most.prompt_tokens:,} prompt tokens; hit rate without a limit "
        f"{most.hit_rate:.2%}, {most.kept_bytes / 1e9:,.0f} GB of KV"
    )
    table = make_table(title, "cache (GB)", *found, "saved tokens", "evicted (GB)")
    for row in zip(*found.values(), strict=True):
        best = max((reuse for _, reuse in row), key=lambda reuse: reuse.found_tokens)
        rates = [f"{reuse.hit_rate:.2%}" for _, reuse in row]
        table.add_row(f"{row[0][0] / 1e9:,.0f}", *rates, f"{best.found_tokens:,}", f"{best.evicted_bytes / 1e9:,.0f}")
    return table


# --- a market with agents


def _market(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    hardware_options = HardwareOptions(devices=("h100",) * options.devices)
    rows: dict[str, list[dict[str, Any]]] = {_OFF: [], PREFIX_CACHE: []}
    hardware = make_hardware(hardware_options, 1)
    for models in options.market:
        scenario = _market_of(models, options)
        for policy, points in rows.items():
            points.append({"models": models, **_point(scenario, hardware_options, policy, options.policy)})
    crossings = {
        policy: crossing([(row["models"], row["slo_attainment"]) for row in points]) for policy, points in rows.items()
    }
    ratio = _ratio(crossings[PREFIX_CACHE], crossings[_OFF])
    console.print(
        _market_table(rows, f"{options.policy} on {hardware.label}, {options.session_rate:g} sessions/s per model")
    )
    texts = {policy: crossings[policy].text() for policy in rows}
    console.print(f"models at 90 %: {texts[PREFIX_CACHE]} with reuse, {texts[_OFF]} without; ratio {ratio}")
    return {
        "devices": hardware.label,
        "policy": options.policy,
        "session_rate": options.session_rate,
        "duration_s": options.duration,
        "seed": options.seed,
        "mix": list(MARKET_MIX),
        "curves": rows,
        "crossings": texts,
        "ratio": ratio,
    }


def _market_of(models: int, options: argparse.Namespace) -> Scenario:
    arrivals = make_sessions(SessionSpec(models, options.session_rate, options.duration, options.seed))
    return make_scenario(arrivals, "sessions", ProfileBook.open(shipped_profiles()), "h100", MARKET_MIX)


def _point(scenario: Scenario, options: HardwareOptions, prefix_cache: str, policy: str) -> dict[str, Any]:
    tally = Tally(keep_text=False, keep_records=True)
    hardware = make_hardware(options, scenario.tp)
    summary = simulate(find_system(policy), scenario, hardware, tally, prefix_cache=prefix_cache).summary
    ttft_s = [record.token_times_s[0] - record.arrival_s for record in tally.records if record.token_times_s]
    kept = summary.get("prefix_cache", {})
    return {
        "requests": summary["requests"],
        "slo_attainment": summary["slo_attainment"],
        "ttft_p50_s": float(np.quantile(ttft_s, 0.5)),
        "ttft_p95_s": float(np.quantile(ttft_s, 0.95)),
        "busy_share": summary["busy_share"],
        "hit_rate": kept.get("hit_rate", 0.0),
        "found_tokens": kept.get("found_tokens", 0),
        "evicted_bytes": kept.get("evicted_bytes", 0),
    }


def _ratio(ours: Crossing, theirs: Crossing) -> str:
    if theirs.kind is not CrossingKind.CROSSES or ours.kind is CrossingKind.NEVER:
        return "unknown"
    return f"{'> ' if ours.kind is CrossingKind.BEYOND else ''}{ours.x / theirs.x:.2f}"


def _market_table(rows: Mapping[str, Sequence[Mapping[str, Any]]], title: str) -> Table:
    headings = ("models", "requests", "on time", "TTFT p50 (s)", "p95 (s)", "hit rate", "saved tokens", "evicted (GB)")
    table = make_table(title, "prefix cache", *headings, "busy")
    for policy, points in rows.items():
        for row in points:
            table.add_row(
                policy,
                f"{row['models']}",
                f"{row['requests']:,}",
                f"{row['slo_attainment']:.1%}",
                f"{row['ttft_p50_s']:.2f}",
                f"{row['ttft_p95_s']:.2f}",
                f"{row['hit_rate']:.1%}",
                f"{row['found_tokens']:,}",
                f"{row['evicted_bytes'] / 1e9:,.0f}",
                f"{row['busy_share']:.1%}",
            )
    return table


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="sim.study.prefix_reuse", description="What keeping KV is worth.")
    made.add_argument("--trace", type=Path, nargs="+", default=[], metavar="FILE")
    made.add_argument(
        "--conversations", type=int, metavar="N", help="of a trace of conversations, the first; default all"
    )
    made.add_argument("--policies", nargs="+", choices=[*EVICTIONS], default=[*EVICTIONS])
    made.add_argument(
        "--shares", type=float, nargs="+", default=SHARES, metavar="X", help="sizes of the cache, of what it could keep"
    )
    made.add_argument("--market", type=int, nargs="+", default=[], metavar="N", help="numbers of models")
    made.add_argument("--session-rate", type=float, default=0.02, metavar="R", help="sessions/s per model")
    made.add_argument("--duration", type=float, default=300.0, metavar="S")
    made.add_argument("--devices", type=int, default=16, metavar="N", help="h100")
    made.add_argument("--policy", default="slack")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--out", type=Path, default=Path("plots/json/prefix_reuse.json"), metavar="FILE")
    return made


if __name__ == "__main__":
    sys.exit(main())
