"""Replays a workload over HTTP against a pool, one it starts or a running one, and writes the record of every request.

python3 benchmark/benchmark_e2e.py --num-models 16 --arrival-rate 0.1
python3 benchmark/benchmark_e2e.py --base-url http://127.0.0.1:8000 --trace azure.csv.gz --time-scale 0.5
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # run as a script: the folder above has the packages
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import httpx
from rich.console import Console

from aegaeon.core.config import PoolConfig
from aegaeon.core.record import RequestRecord
from aegaeon.core.slo import Slo
from aegaeon.run_header import RunHeader
from aegaeon.workload import Arrival
from benchmark.command.errors import BenchmarkUsageError
from benchmark.command.main import run_command
from benchmark.e2e.job import LengthLimits, ReplayJob, TargetModel, plan_jobs
from benchmark.e2e.live_view import ReplayProgress, showing
from benchmark.e2e.occupancy import occupancies, switches
from benchmark.e2e.options import parse_options
from benchmark.e2e.plan import plan_of, slo_of
from benchmark.e2e.policy_choice import chosen_policy
from benchmark.e2e.pool import PoolProcess
from benchmark.e2e.replay import Replay, Replayed, http_client, served_models
from benchmark.e2e.results import (
    RUN,
    failures,
    local_device,
    model_table,
    record_file_name,
    run_header,
    summary_table,
    write_records,
)
from benchmark.e2e.small_models import bench_models, ensure_models

LAG_WORTH_TELLING_S = 0.1


@contextmanager
def server_url(options: argparse.Namespace, models: int, console: Console) -> Iterator[str]:
    """The address of the running server, or of a pool that lives as long as the context."""
    if options.base_url:
        yield options.base_url
        return
    with tempfile.TemporaryDirectory(prefix="aegaeon-bench-") as scratch:
        arguments = pool_arguments(options, models, console)
        console.print("starting the pool ...")
        with PoolProcess(arguments, Path(scratch) / "pool.log") as pool:
            yield pool.url


def pool_arguments(options: argparse.Namespace, models: int, console: Console) -> list[str]:
    """Arguments of ``aegaeon serve``."""
    arguments = [*(options.models or ()), "--policy", options.policy]
    if options.config:
        arguments += ["--config", str(options.config)]
    if not (options.models or options.config):
        made = ensure_models(bench_models(models), options.models_dir, console.print)
        arguments += [f"{name}={directory}" for name, directory in made.items()]
    if options.instances:
        arguments += ["--instances", options.instances]
    if options.cpu_num_slabs:
        arguments += ["--kv-cache", str(options.cpu_num_slabs * PoolConfig(models=()).slab_bytes)]
    if options.nnodes > 1:
        arguments += ["--nodes", str(options.nnodes), "--ray-address", os.environ.get("AEGAEON_RAY_ADDRESS") or "auto"]
    return arguments


@dataclass(frozen=True, slots=True)
class Run:
    """What came of a replay."""

    replies: list[Replayed]
    duration_s: float
    lag_s: float

    @property
    def records(self) -> list[RequestRecord]:
        return [reply.record for reply in self.replies]


async def replay(
    base_url: str, arrivals: Sequence[Arrival], slo: Slo, options: argparse.Namespace, console: Console
) -> Run:
    """Replay arrivals against a server, and show how it goes."""
    limits = LengthLimits(options.max_input_tokens, options.max_output_tokens)
    async with http_client(base_url, options.timeout) as client:
        jobs = plan_jobs(arrivals, await _require_models(client), limits)
        progress = ReplayProgress(jobs)
        _announce(jobs, arrivals, console)
        run = Replay(client, slo, progress)
        async with showing(console, progress.table, progress.line, console.is_terminal):
            replies = await run.run(jobs)
        return Run(replies, run.now_s, run.lag_s)


async def _require_models(client: httpx.AsyncClient) -> list[TargetModel]:
    try:
        models = await served_models(client)
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        raise BenchmarkUsageError(
            f"{client.base_url}: /v1/models does not answer ({error or type(error).__name__})"
        ) from error
    if not models:
        raise BenchmarkUsageError(f"{client.base_url}: serves no model")
    return models


def _announce(jobs: Sequence[ReplayJob], arrivals: Sequence[Arrival], console: Console) -> None:
    targets = len({job.model for job in jobs})
    names = len({arrival.model for arrival in arrivals})
    console.print(f"{len(jobs)} requests over {jobs[-1].time_s:.0f} s for {names} models")
    if targets < names:
        console.print(f"only {targets} models are served: each stands in for several of the workload")
    cut = sum(
        (job.prompt_tokens, job.new_tokens) != (arrival.input_tokens, arrival.output_tokens)
        for job, arrival in zip(jobs, arrivals, strict=True)
    )
    if cut:
        console.print(f"lengths of {cut} requests are cut to the caps or to their model's context")


def report(run: Run, path: Path, header: RunHeader, console: Console) -> None:
    """Print tables and write the record file."""
    records = run.records
    write_records(records, path, header)
    moves = switches(occupancies((reply.record.model, reply.spans) for reply in run.replies))
    console.print(model_table(records, moves))
    console.print(summary_table(records, run.duration_s))
    for reason, count in failures(records).most_common():
        console.print(f"{count} failed: {reason}", style="red")
    if run.lag_s > LAG_WORTH_TELLING_S:
        console.print(f"this client was up to {run.lag_s:.2f} s late in sending; that counts against the server")
    unknown = (
        "" if header.runs[RUN].policy else " (figures need to know which policy the server runs: tell it with --policy)"
    )
    console.print(f"records: {path}{unknown}", soft_wrap=True)


def _run(options: argparse.Namespace, console: Console) -> int:
    slo = slo_of(os.environ)
    plan = plan_of(options)
    path = options.out / record_file_name(plan.label, slo)
    console.print(f"workload: {plan.origin}", soft_wrap=True)
    if not options.base_url:
        options.policy = chosen_policy(options.policy, options.config, os.environ)
        console.print(f"policy: {options.policy}")
    with server_url(options, plan.models, console) as url:
        run = asyncio.run(replay(url, plan.arrivals, slo, options, console))
    device = options.measured_on or (None if options.base_url else local_device())
    report(run, path, run_header(options.policy, plan.load, slo, device), console)
    return int(bool(failures(run.records)))


def main(arguments: Sequence[str] | None = None, program: str = "benchmark_e2e.py") -> int:
    """Run the command line: 0, 1 if a request failed, 2 for a mistake, 130 after Ctrl-C."""
    console = Console(highlight=False, markup=False)
    return run_command(program, lambda: _run(parse_options(arguments, program), console))


if __name__ == "__main__":
    sys.exit(main())
