"""The demo: eight small models on three CPU instances under a minute of traffic, and what came of it.

python -m benchmark.demo [--seconds 60] [--no-live]
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten

import httpx
from rich.console import Console

from aegaeon.core.slo import Slo
from aegaeon.workload import QuantileTable, SyntheticSpec, synthesize
from benchmark.command.main import amount, draw_result, run_command
from benchmark.command.result_file import write_result
from benchmark.e2e.job import LengthLimits, plan_jobs
from benchmark.e2e.live_view import ReplayProgress, showing
from benchmark.e2e.occupancy import occupancies, switches
from benchmark.e2e.policy_choice import DEFAULT_POLICY
from benchmark.e2e.pool import PoolProcess
from benchmark.e2e.pool_state import PoolState
from benchmark.e2e.replay import Replay, Replayed, http_client, served_models
from benchmark.e2e.results import (
    failures,
    local_device,
    model_table,
    record_file_name,
    run_header,
    summary_table,
    write_records,
)
from benchmark.e2e.small_models import CACHE_DIR, demo_models, ensure_models

INSTANCES = "3"
SERVED = ("--instances", INSTANCES, "--policy", DEFAULT_POLICY)
RATE_PER_S = 0.8
GREETING = "Hello! Who are you?"
GREETING_TOKENS = 32
GREETING_CHARACTERS = 80
TIMEOUT_S = 60.0


async def say_hello(client: httpx.AsyncClient, console: Console) -> None:
    """Let each model say a line in its own voice."""
    cards = (await client.get("/v1/models")).raise_for_status().json()["data"]
    for card in cards:
        question = {"role": "user", "content": GREETING}
        body = {"model": card["id"], "messages": [question], "max_tokens": GREETING_TOKENS, "temperature": 0}
        response = (await client.post("/v1/chat/completions", json=body)).raise_for_status()
        text = shorten(response.json()["choices"][0]["message"]["content"], GREETING_CHARACTERS, placeholder=" ...")
        console.print(f"{card['id']} ({card['architecture']}): {text}", soft_wrap=True)


async def send_traffic(client: httpx.AsyncClient, options: argparse.Namespace, console: Console) -> list[Replayed]:
    """Generated traffic for all models, shown while it runs."""
    models = await served_models(client)
    spec = SyntheticSpec(
        models=len(models), rate_per_s=RATE_PER_S, duration_s=options.seconds, input_scale=0.1, output_scale=0.2
    )
    jobs = plan_jobs(synthesize(spec, QuantileTable.shipped()), models, LengthLimits(256, 128))
    progress, pool = ReplayProgress(jobs), PoolState(client)
    console.print(f"\n{len(jobs)} requests in {options.seconds:g} s, for {len(models)} models on {INSTANCES} instances")
    shown = showing(console, lambda: pool.view(progress), lambda: pool.line(progress), options.live)
    async with pool.watched(), shown:
        return await Replay(client, Slo(), progress).run(jobs)


def show_results(replies: Sequence[Replayed], duration_s: float, out: Path, console: Console) -> None:
    """The tables, the record file and the figure."""
    records = [reply.record for reply in replies]
    ran = occupancies((reply.record.model, reply.spans) for reply in replies)
    console.print(model_table(records, switches(ran)))
    console.print(summary_table(records, duration_s))
    for reason, count in failures(records).most_common():
        console.print(f"{count} failed: {reason}", style="red")
    header = run_header(DEFAULT_POLICY, None, Slo(), local_device())
    write_records(records, out / record_file_name("demo", Slo()), header)
    models = len({record.model for record in records})
    title = f"{models} models on {len(ran)} instances, {len(records)} requests in {duration_s:.0f} s"
    write_result(
        out / "timeline.json", "timeline", {"title": title, "instances": {name: ran[name] for name in sorted(ran)}}
    )
    console.print("timeline of models per instance:", end=" ")
    draw_result(out / "timeline.json", console)


async def _visit(url: str, options: argparse.Namespace, console: Console) -> tuple[list[Replayed], float]:
    async with http_client(url, TIMEOUT_S) as client:
        await say_hello(client, console)
        start_s = time.monotonic()
        replies = await send_traffic(client, options, console)
        return replies, time.monotonic() - start_s


def _run(options: argparse.Namespace, console: Console) -> int:
    folders = ensure_models(demo_models(), CACHE_DIR / "demo-models", console.print)
    models = [f"{name}={folder}" for name, folder in folders.items()]
    command = " ".join(["aegaeon serve", *(f"{name}=..." for name in folders), *SERVED])
    console.print(f"$ {command}", soft_wrap=True)
    start_s = time.monotonic()
    with PoolProcess([*models, *SERVED], options.out / "pool.log") as pool:
        console.print(f"{len(models)} models at {pool.url}, ready after {time.monotonic() - start_s:.1f} s\n")
        replies, duration_s = asyncio.run(_visit(pool.url, options, console))
        console.print("\nstopping the pool ...")
    show_results(replies, duration_s, options.out, console)
    return int(bool(failures([reply.record for reply in replies])))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo: 0, 1 if a request failed, 2 where it could not run, 130 after Ctrl-C."""
    console = Console(highlight=False, markup=False)
    parser = argparse.ArgumentParser(
        prog="demo", description="Eight small models on three CPU instances, under traffic."
    )
    parser.add_argument("--seconds", type=amount, default=60.0, metavar="S", help="of traffic (default 60)")
    parser.add_argument(
        "--live", action=argparse.BooleanOptionalAction, default=console.is_terminal, help="live tables"
    )
    parser.add_argument("--out", type=Path, default=Path("demo-out"), metavar="DIR", help="default ./demo-out")
    options = parser.parse_args(arguments)
    return run_command("demo", lambda: _run(options, console))


if __name__ == "__main__":
    sys.exit(main())
