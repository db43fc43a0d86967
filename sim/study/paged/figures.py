"""Simulates Figures 2, 12 to 16, 18b and 19 of vLLM's paper, and compares them with what is published.

    python3 -m sim.study.paged.figures [--only rates memory blocks] [--out DIR]

Writes ``paged_rates.json``, ``paged_memory.json`` and ``paged_blocks.json``, which ``python -m plots.results`` draws.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from aegaeon.run_header import result_header
from sim.study.command import make_console, make_table, run_command
from sim.study.paged import block_sizes, memory_bars
from sim.study.paged.experiment import PAGED, SYSTEMS
from sim.study.paged.rate_panels import LEVEL_S, PANELS, RatePanel, limit
from sim.study.processes import run_in_processes

RESULTS = Path(__file__).resolve().parents[3] / "benchmark" / "results"

Key = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class FigureJob:
    """One call, in a process of its own; ``key`` says which."""

    key: Key
    call: Callable[..., Any]
    arguments: Key

    def run(self) -> Any:
        return self.call(*self.arguments)


@dataclass(frozen=True, slots=True)
class FigurePart:
    """A file of results: what has to be run for it, what it says, and the table of that."""

    jobs: Callable[[], list[FigureJob]]
    content: Callable[[Mapping[Key, Any]], dict[str, Any]]
    tables: Callable[[Mapping[str, Any]], list[Table]]


# --- rates


def _rate_jobs() -> list[FigureJob]:
    return [
        FigureJob(("rates", number, system), panel.curve, (system,))
        for number, panel in enumerate(PANELS)
        for system in panel.rates
    ]


def _rates(done: Mapping[Key, Any]) -> dict[str, Any]:
    return {"level_s": LEVEL_S, "panels": [_panel(number, panel, done) for number, panel in enumerate(PANELS)]}


def _panel(number: int, panel: RatePanel, done: Mapping[Key, Any]) -> dict[str, Any]:
    curves = {system: done["rates", number, system] for system in panel.rates}
    limits = {system: limit(points) for system, points in curves.items()}
    return {
        "figure": panel.figure,
        "title": panel.title,
        "model": panel.model,
        "dataset": panel.dataset,
        "sampling": panel.sampling.name,
        "published": panel.published,
        "curves": curves,
        "limits": {system: found.text(2) for system, found in limits.items()},
        "gains": {system: limits[PAGED].x / found.x for system, found in limits.items() if system != PAGED},
    }


def _rate_tables(content: Mapping[str, Any]) -> list[Table]:
    headings = (*SYSTEMS, *(f"x {system.removeprefix('orca-')}" for system in SYSTEMS[1:]), "published")
    table = make_table(f"requests/s below {LEVEL_S:g} s per token", "figure", *headings)
    for panel in content["panels"]:
        limits = [panel["limits"].get(system, "") for system in SYSTEMS]
        gains = [f"{panel['gains'][system]:.2f}" if system in panel["gains"] else "" for system in SYSTEMS[1:]]
        table.add_row(f"{panel['figure']}: {panel['title']}", *limits, *gains, panel["published"])
    return [table]


# --- memory


def _memory_jobs() -> list[FigureJob]:
    return [
        *(FigureJob(("use", system), memory_bars.use, (system,)) for system in SYSTEMS),
        *(
            FigureJob(("batched", dataset, system), memory_bars.batched, (dataset, system))
            for dataset in memory_bars.BATCHED_LOADS
            for system in SYSTEMS
        ),
        *(
            FigureJob(("saving", dataset, sampling), memory_bars.saving, (dataset, sampling))
            for dataset in memory_bars.SHARED_LOADS
            for sampling in memory_bars.SHARED_SAMPLINGS
        ),
    ]


def _memory(done: Mapping[Key, Any]) -> dict[str, Any]:
    loads, shared, samplings = memory_bars.BATCHED_LOADS, memory_bars.SHARED_LOADS, memory_bars.SHARED_SAMPLINGS
    return {
        "use": {system: done["use", system] for system in SYSTEMS},
        "use_published": dict(memory_bars.USE_PUBLISHED),
        "batched": {dataset: {system: done["batched", dataset, system] for system in SYSTEMS} for dataset in loads},
        "batched_published": {dataset: dict(found) for dataset, found in memory_bars.BATCHED_PUBLISHED.items()},
        "saving": {dataset: {name: done["saving", dataset, name] for name in samplings} for dataset in shared},
        "saving_published": {
            dataset: dict(zip(samplings, found, strict=True)) for dataset, found in memory_bars.SAVING_PUBLISHED.items()
        },
    }


def _memory_tables(content: Mapping[str, Any]) -> list[Table]:
    use = make_table("figure 2: the pool at 4 req/s of ShareGPT, %", "system", *content["use"][PAGED], "published")
    for system, shares in content["use"].items():
        published = " ".join(f"{share:g}" for share in content["use_published"][system])
        use.add_row(system, *(f"{share:.1f}" for share in shares.values()), published)
    batch = make_table("figure 13: requests in a batch", "load", *SYSTEMS)
    for dataset, found in content["batched"].items():
        published = content["batched_published"][dataset]
        cells = [f"{found[system]['requests']:.1f} ({published[system]:.1f})" for system in SYSTEMS]
        batch.add_row(f"{dataset} (published)", *cells)
    save = make_table("figure 15: blocks saved by sharing, %", "load", *memory_bars.SHARED_SAMPLINGS)
    for dataset, found in content["saving"].items():
        published = content["saving_published"].get(dataset, {})
        cells = [f"{share:.1f}" + (f" ({published[name]:.1f})" if published else "") for name, share in found.items()]
        save.add_row(f"{dataset}{' (published)' * bool(published)}", *cells)
    return [use, batch, save]


# --- blocks


def _block_jobs() -> list[FigureJob]:
    sizes, latency_s = block_sizes.SIZES, block_sizes.latency_s
    loads = [
        FigureJob(("latency", dataset, size), latency_s, (dataset, size))
        for dataset in block_sizes.LOADS
        for size in sizes
    ]
    return [*loads, *(FigureJob(("swap", size), latency_s, ("sharegpt", size, True)) for size in sizes)]


def _blocks(done: Mapping[Key, Any]) -> dict[str, Any]:
    sizes = block_sizes.SIZES
    return {
        "sizes": list(sizes),
        "loads": dict(block_sizes.LOADS),
        "latency_s": {dataset: [done["latency", dataset, size] for size in sizes] for dataset in block_sizes.LOADS},
        "swap_latency_s": [done["swap", size] for size in sizes],
        "moved_ms": [block_sizes.moved_ms(size) for size in sizes],
    }


def _block_tables(content: Mapping[str, Any]) -> list[Table]:
    moved = list(content["moved_ms"][0])
    datasets = [f"{dataset}, {rate:g}/s" for dataset, rate in content["loads"].items()]
    headings = (*datasets, f"{datasets[-1]}, always swapped", *(f"{name} (ms)" for name in moved))
    table = make_table("figures 18b and 19: s per token, and 256 tokens had again", "block", *headings)
    latencies = [*content["latency_s"].values(), content["swap_latency_s"]]
    for place, size in enumerate(content["sizes"]):
        cells = [f"{each[place]:.4f}" for each in latencies]
        table.add_row(f"{size}", *cells, *(f"{content['moved_ms'][place][name]:.1f}" for name in moved))
    return [table]


PARTS: Mapping[str, FigurePart] = MappingProxyType(
    {
        "rates": FigurePart(_rate_jobs, _rates, _rate_tables),
        "memory": FigurePart(_memory_jobs, _memory, _memory_tables),
        "blocks": FigurePart(_block_jobs, _blocks, _block_tables),
    }
)


# --- the command


def simulate(jobs: Sequence[FigureJob], workers: int, console: Console) -> dict[Key, Any]:
    """What all calls return, by their keys."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        runs = run_in_processes(FigureJob.run, jobs, workers)
        return {job.key: value for job, value in bar.track(runs, len(jobs), description="simulating")}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, 2 after a complaint about options or files, 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    return run_command("sim.study.paged.figures", lambda: _run(options, make_console()))


def _run(options: argparse.Namespace, console: Console) -> int:
    parts = {name: PARTS[name] for name in options.only}
    done = simulate([job for part in parts.values() for job in part.jobs()], options.workers, console)
    options.out.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        content = part.content(done)
        for table in part.tables(content):
            console.print(table)
        path = options.out / f"paged_{name}.json"
        path.write_text(json.dumps({**result_header(f"paged {name}"), **content}, indent=1) + "\n", encoding="utf-8")
        console.print(f"{path}; draw it with python -m plots.results {path}", soft_wrap=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="sim.study.paged.figures", description="vLLM's figures, simulated.")
    made.add_argument("--only", nargs="+", choices=[*PARTS], default=[*PARTS])
    made.add_argument("--out", type=Path, default=RESULTS, metavar="DIR")
    made.add_argument("--workers", type=_workers, default=os.cpu_count() or 1, metavar="N")
    return made


def _workers(text: str) -> int:
    workers = int(text)
    if workers < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {workers}")
    return workers


if __name__ == "__main__":
    sys.exit(main())
