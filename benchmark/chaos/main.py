"""Does a pool lose anything? Clients that know their answers, while processes are killed and stopped under them.

    python -m benchmark.chaos [--minutes 10] [--faults instance-kill driver server ...] [--busy 2]

The answers are learned from the undisturbed pool first. Then every client asks one question after the other, and every
answer is compared: right, lost (an error, or a connection that ended without cause), hung, wrong or doubled. A client
whose server was killed sees its connection closed, and asks again; that is counted too. Without faults (``--faults
none``) and with busy loops beside the pool (``--busy 2``) it is a soak test of mixed traffic.

Exit code: 0, 1 where anything was lost, hung, wrong, doubled, left behind or left open, 2 where it could not be run.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import httpx
import numpy as np
from rich.console import Console
from rich.table import Table

from aegaeon.runtime.process.run_folder import places
from benchmark.chaos.clients import Client, Question, QuestionKind, Verdict, Watch, learn, questions
from benchmark.chaos.faults import Fault, Hit, Victims
from benchmark.command.main import amount, count, run_command
from benchmark.command.result_file import write_result
from benchmark.e2e.pool import PoolProcess
from benchmark.e2e.process_tree import ProcessTree
from benchmark.e2e.replay import http_client
from benchmark.e2e.small_models import BENCH_ARCHITECTURES, CACHE_DIR, SmallModel, ensure_models

FAULTS = {
    "instance-kill": Fault.KILL,
    "instance-stop": Fault.STOP,
    "forks": Fault.FORKS,
    "driver": Fault.DRIVER,
    "server": Fault.SERVER,
    "pool": Fault.POOL,
}
POLL_S = 0.05
RECOVERED_WITHIN_S = 120.0
IDLE_WITHIN_S = 60.0
LEARNERS = 4
CUT_MARGIN_S = 5.0  # a connection may be told late that its server is gone
MORE_DESCRIPTORS = 8  # that a driver may have open in the end: what comes and goes


@dataclass(slots=True)
class Chaos:
    """A run: its faults so far, and what the clients saw."""

    victims: Victims
    hang_s: float
    pauses_s: tuple[float, float]
    random: random.Random
    hits: list[Hit] = field(default_factory=list)
    watch: Watch = field(init=False)

    def __post_init__(self) -> None:
        self.watch = Watch(self.hang_s, self.may_cut)

    async def run(self, faults: Sequence[Fault], until_s: float) -> None:
        """One fault after the other: the next one comes some time after the last one's recovery."""
        while faults:
            await asyncio.sleep(self.random.uniform(*self.pauses_s))
            if time.monotonic() >= until_s:
                return
            hit = await asyncio.to_thread(self.victims.hit, self.random.choice(faults), self.random)
            if hit is not None:
                self.hits.append(hit)
                self.hits[-1] = await self._recovered(hit)

    async def _recovered(self, hit: Hit) -> Hit:
        """The hit, once each stream that was open then has heard something since, in a new connection if need be."""
        waiting = {stream for stream, heard_s in self.watch.heard_s.items() if heard_s <= hit.time_s}
        deadline_s = hit.time_s + RECOVERED_WITHIN_S
        while waiting and time.monotonic() < deadline_s:
            await asyncio.sleep(POLL_S)
            heard_s = self.watch.heard_s
            waiting = {stream for stream in waiting if heard_s.get(stream, float("inf")) <= hit.time_s}
        return hit if waiting else replace(hit, recovered_s=time.monotonic())

    def may_cut(self, start_s: float) -> bool:
        """Whether a server was killed while a request that began at ``start_s`` was under way, or is coming back."""
        servers = [hit for hit in self.hits if hit.fault is Fault.SERVER]
        return any((hit.recovered_s or float("inf")) + CUT_MARGIN_S >= start_s for hit in servers)


@dataclass(frozen=True, slots=True)
class Idle:
    """What a pool holds when it has no request any more; open descriptors, before and after it all, of its processes
    that were there from the beginning to the end."""

    kv_bytes: int
    requests: int
    descriptors: dict[str, tuple[int, int]]

    @property
    def leaks(self) -> bool:
        """Whether a driver, or its forks, opened what they do not close; a server has as many as it has clients."""
        return any(
            after - before > MORE_DESCRIPTORS
            for name, (before, after) in self.descriptors.items()
            if name.startswith((Fault.FORKS.victim, Fault.DRIVER.victim))
        )

    @property
    def clean(self) -> bool:
        return not (self.kv_bytes or self.requests or self.leaks)


@dataclass(frozen=True, slots=True)
class Gone:
    """What a pool left when it was asked to end."""

    exit_code: int | None
    processes: int
    files: tuple[str, ...]


@contextlib.contextmanager
def busy_loops(number: int) -> Iterator[None]:
    """So many processes that do nothing but take time from others."""
    context = multiprocessing.get_context("spawn")
    loops = [context.Process(target=_burn, daemon=True) for _ in range(number)]
    for loop in loops:
        loop.start()
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.join()


def _burn() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        pass


def files_of_pools() -> set[str]:
    """Files that a pool could leave; logs that it keeps, and says so, are none."""
    own = ("aegaeon", "ae-", "ray", "plasma")
    return {
        str(file)
        for folder in {Path(tempfile.gettempdir()), *places(os.environ)}
        if folder.is_dir() and os.access(folder, os.R_OK | os.X_OK)
        for file in folder.iterdir()
        if file.name.startswith(own) and not file.name.startswith("aegaeon-failed-") and not file.is_socket()
    }


async def _idle(http: httpx.AsyncClient) -> tuple[int, int]:
    """Bytes of KV and requests that are left when the clients have gone; both should soon be zero."""
    deadline_s = time.monotonic() + IDLE_WITHIN_S
    while True:
        state = (await http.get("/admin/state")).raise_for_status().json()
        kv_bytes = sum(node["kv_used_bytes"] for node in state["nodes"])
        requests = sum(model["waiting"] + model["running"] for model in state["models"].values())
        if not (kv_bytes or requests) or time.monotonic() > deadline_s:
            return kv_bytes, requests
        await asyncio.sleep(POLL_S)


async def _visit(pool: PoolProcess, options: argparse.Namespace, console: Console) -> tuple[Chaos, Idle]:
    """Learn the answers, do the faults under the clients, and look at what is left when they have gone."""
    victims = Victims(pool.pid, pool.url)
    async with http_client(pool.url, options.hang) as http:
        asked = await _learned(http, options, console)
        before = victims.descriptors()
        chaos = Chaos(victims, options.hang, tuple(options.pauses), random.Random(options.seed))
        with busy_loops(options.busy):
            await _run_clients(
                chaos, [Client(n, http, asked, options.seed) for n in range(options.streams)], options, console
            )
        kv_bytes, requests = await _idle(http)
        after = victims.descriptors()
        stayed = before.keys() & after.keys()
        return chaos, Idle(kv_bytes, requests, {name: (before[name], after[name]) for name in sorted(stayed)})


async def _learned(http: httpx.AsyncClient, options: argparse.Namespace, console: Console) -> list[Question]:
    asked = questions(await _names(http), options.tokens, options.seed)
    console.print(f"learning {len(asked)} answers from the undisturbed pool")
    slots = asyncio.Semaphore(LEARNERS)

    async def learned(question: Question) -> Question:
        async with slots:
            return await learn(http, question)

    return await asyncio.gather(*(learned(question) for question in asked))


async def _run_clients(chaos: Chaos, clients: Sequence[Client], options: argparse.Namespace, console: Console) -> None:
    start_s = time.monotonic()
    until_s = start_s + options.minutes * 60
    telling = asyncio.create_task(_tell(chaos, start_s, options, console))
    try:
        await asyncio.gather(
            chaos.run([FAULTS[name] for name in options.faults], until_s),
            *(client.run(chaos.watch, until_s) for client in clients),
        )
    finally:
        telling.cancel()


async def _names(http: httpx.AsyncClient) -> list[str]:
    return [card["id"] for card in (await http.get("/v1/models")).raise_for_status().json()["data"]]


async def _tell(chaos: Chaos, start_s: float, options: argparse.Namespace, console: Console) -> None:
    """A line now and then: what happened last, and how many answers were right so far."""
    told = 0
    while True:
        await asyncio.sleep(1.0)
        now_s = time.monotonic() - start_s
        for complaint in chaos.watch.complaints[told:]:
            console.print(f"{now_s:6.0f} s  {complaint[:600]}", style="red", markup=False)
        told = len(chaos.watch.complaints)
        if int(now_s) % 15 == 0:
            right = sum(n for (_, verdict), n in chaos.watch.verdicts.items() if verdict is Verdict.RIGHT)
            last = f"last: {chaos.hits[-1].fault}, {chaos.hits[-1].recovery_s:.1f} s" if chaos.hits else ""
            console.print(
                f"{now_s:6.0f} of {options.minutes * 60:.0f} s  {right} answers right, {chaos.watch.bad} bad, "
                f"{len(chaos.hits)} faults  {last}"
            )


def verdict_table(watch: Watch) -> Table:
    """How many answers of each kind came out how."""
    table = Table(title="answers", title_justify="left")
    table.add_column("kind")
    for verdict in Verdict:
        table.add_column(verdict, justify="right")
    for kind in QuestionKind:
        table.add_row(kind, *(str(watch.verdicts[kind, verdict]) for verdict in Verdict))
    return table


def fault_table(hits: Sequence[Hit], longest_silence_s: float) -> Table:
    """Per fault, how long it took until each open stream had moved on."""
    title = f"seconds until every stream had moved on (longest silence apart from that: {longest_silence_s:.1f} s)"
    table = Table(title=title, title_justify="left")
    for name in ("fault", "times", "p50", "p99", "never"):
        table.add_column(name, justify="left" if name == "fault" else "right")
    for fault in (*Fault, None):
        chosen = [hit.recovery_s for hit in hits if fault in (None, hit.fault)]
        never = sum(recovery_s == float("inf") for recovery_s in chosen)
        if chosen:
            p50, p99 = (f"{value_s:.1f}" for value_s in _p50_p99_s(chosen))
            table.add_row(fault or "all", str(len(chosen)), p50, p99, str(never))
    return table


def _p50_p99_s(recoveries_s: Sequence[float]) -> tuple[float, float]:
    """The percentiles that were seen, not in between; infinite where a fault was never recovered from."""
    p50_s, p99_s = np.quantile(recoveries_s, (0.5, 0.99), method="higher")
    return round(float(p50_s), 2), round(float(p99_s), 2)


def _longest_silence_s(chaos: Chaos) -> float:
    """The longest silence of one stream while nothing was being recovered from."""
    troubled = [(hit.time_s, hit.recovered_s or float("inf")) for hit in chaos.hits]
    quiet = (
        end_s - start_s
        for start_s, end_s in chaos.watch.silences
        if not any(start_s < until_s and from_s < end_s for from_s, until_s in troubled)
    )
    return max(quiet, default=0.0)


def _end(pool: PoolProcess, files_before: set[str]) -> Gone:
    """Ask the pool to end as an operator does."""
    members = ProcessTree.now().descendants({pool.pid})
    os.kill(pool.pid, signal.SIGTERM)
    try:
        code = pool.wait(90.0)
    except subprocess.TimeoutExpired:
        code = None
    left = members & ProcessTree.now().running.keys()
    return Gone(code, len(left), tuple(sorted(files_of_pools() - files_before)))


def _run(options: argparse.Namespace, console: Console) -> int:
    recipes = [
        SmallModel(f"chaos-{index}", BENCH_ARCHITECTURES[index % len(BENCH_ARCHITECTURES)], seed=index, dtype="float32")
        for index in range(options.num_models)
    ]
    folders = ensure_models(recipes, CACHE_DIR / "bench-models", console.print)
    files_before = files_of_pools()
    arguments = [f"{name}={folder}" for name, folder in folders.items()]
    log = options.out / "chaos-pool.log"
    with PoolProcess([*arguments, "--instances", options.instances, *options.serve], log) as pool:
        console.print(f"{len(folders)} models on {options.instances} instances at {pool.url}; log: {log}")
        chaos, idle = asyncio.run(_visit(pool, options, console))
        gone = _end(pool, files_before)
    _write(chaos, idle, gone, options)
    return _report(chaos, idle, gone, console)


def _report(chaos: Chaos, idle: Idle, gone: Gone, console: Console) -> int:
    """Show it all; 1 where anything went wrong."""
    console.print(verdict_table(chaos.watch))
    if chaos.hits:
        console.print(fault_table(chaos.hits, _longest_silence_s(chaos)))
    grown = ", ".join(f"{name} {before} -> {after}" for name, (before, after) in idle.descriptors.items())
    console.print(
        f"left when idle: {idle.kv_bytes} bytes of KV, {idle.requests} requests; open descriptors: {grown}\n"
        f"left when gone: exit code {gone.exit_code}, {gone.processes} processes, files {list(gone.files)}"
    )
    never = sum(hit.recovered_s is None for hit in chaos.hits)
    left = gone.exit_code != 0 or gone.processes or gone.files
    return int(bool(chaos.watch.bad or never or not idle.clean or left))


def _write(chaos: Chaos, idle: Idle, gone: Gone, options: argparse.Namespace) -> None:
    p50_s, p99_s = _p50_p99_s([hit.recovery_s for hit in chaos.hits]) if chaos.hits else (None, None)
    record = {
        "minutes": options.minutes,
        "streams": options.streams,
        "models": options.num_models,
        "instances": options.instances,
        "busy_loops": options.busy,
        "seed": options.seed,
        "answers": {
            kind: {verdict: n for verdict in Verdict if (n := chaos.watch.verdicts[kind, verdict])}
            for kind in QuestionKind
        },
        "faults": [
            {"fault": hit.fault, "recovery_s": round(hit.recovery_s, 2)} for hit in chaos.hits if hit.recovered_s
        ],
        "never_recovered": sum(hit.recovered_s is None for hit in chaos.hits),
        "recovery_p50_s": p50_s,
        "recovery_p99_s": p99_s,
        "left_when_idle": asdict(idle),
        "left_when_gone": asdict(gone),
    }
    name = "chaos" if options.faults else "soak"
    write_result(options.out / f"{name}.json", name, record)


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.chaos", description="Kills and stops under known streams; what is lost?"
    )
    parser.add_argument("--minutes", type=amount, default=10.0, help="of traffic  [10]")
    parser.add_argument("--streams", type=count, default=30, help="clients at a time  [30]")
    parser.add_argument("--num-models", type=count, default=4, metavar="N", help="[4]")
    parser.add_argument("--instances", default="2", help="as in aegaeon serve  [2]")
    parser.add_argument("--tokens", type=count, default=160, help="of the longest answers  [160]")
    parser.add_argument(
        "--faults", nargs="+", choices=[*FAULTS, "none"], default=list(FAULTS), metavar="FAULT", help="[all]; or none"
    )
    parser.add_argument(
        "--pauses", type=amount, nargs=2, default=[4.0, 15.0], metavar="S", help="between faults  [4 15]"
    )
    parser.add_argument("--hang", type=amount, default=120.0, metavar="S", help="silence that counts as hung  [120]")
    parser.add_argument("--busy", type=int, default=0, metavar="N", help="busy loops beside it  [0]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--serve", nargs=argparse.REMAINDER, default=[], help="the rest goes to aegaeon serve")
    parser.add_argument("--out", type=Path, default=Path("chaos-out"), metavar="DIR", help="[./chaos-out]")
    options = parser.parse_args(arguments)
    if "none" in options.faults:
        options.faults = []
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    console = Console(highlight=False, soft_wrap=True)
    options = parse_options(arguments)
    return run_command("chaos", lambda: _run(options, console))
