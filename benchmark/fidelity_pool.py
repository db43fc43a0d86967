"""The real side of the fidelity benchmark: models, their profiles, and a pool that replays loads.

Does not know: the simulator, what is compared.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from aegaeon.core.config import ModelConfig
from aegaeon.core.slo import Slo
from aegaeon.core.timeline import Phase
from aegaeon.latency.profile_book import ProfileBook, ProfileEntry
from aegaeon.make_model import ModelSizes, make_model
from aegaeon.profiling.campaign import Campaign
from aegaeon.profiling.probe import Probe, ProbeOptions, Script
from aegaeon.runtime.prepare import PreparedModel, prepare_models
from aegaeon.scheduler.log import LogEntry, decode
from benchmark.fidelity_measured import RealRun
from benchmark.job import Job
from benchmark.pool import PoolProcess
from benchmark.process_tree import ProcessTree
from benchmark.replay import Replay, Reply, http_client

SIZES = ModelSizes(hidden_size=512, layers=8, heads=8, kv_heads=4, vocab_size=4096)
ARCHITECTURES = ("llama", "qwen3", "llama", "qwen3")
THREADS = 1  # two instances on two cores
CONTEXT_TOKENS = 640
BATCH = 16
CHUNK_TOKENS = 512
BLOCK_TOKENS = 16
KV_CACHE_BYTES = 256 << 20
SLAB_BYTES = 16 << 20
_KV_TOKENS = 4096
_WARM_PROMPTS = 40  # until the weights of a prefill instance are packed: a piece a step
_INTERFERENCE_S = 6.0


def ensure_models(folder: Path) -> dict[str, Path]:
    """The models by name, made where they are not there."""
    models = {f"model-{index}": folder / f"model-{index}" for index in range(len(ARCHITECTURES))}
    for index, (path, architecture) in enumerate(zip(models.values(), ARCHITECTURES, strict=True)):
        if not path.is_dir():
            make_model(architecture, path, SIZES, seed=index)
    return models


def profile(models: Mapping[str, Path], out: Path, date: str, progress: Callable[[int, int, str], None]) -> list[str]:
    """Profile the models here, going on with what is in ``out``; for each model without a profile the reason."""
    campaign = Campaign(
        models,
        out,
        THREADS,
        kv_bytes=64 << 20,
        chunk_tokens=CHUNK_TOKENS,
        max_batch_requests=BATCH,
        max_context_tokens=CONTEXT_TOKENS,
        max_error=0.10,
        quick=False,
        fresh=False,
        date=date,
    )
    return campaign.run(progress)[1]


def profiles(out: Path, device: str, names: Sequence[str]) -> dict[str, ProfileEntry]:
    """What ``profile`` wrote."""
    book = ProfileBook.open(out)
    return {name: book.find(name, device) for name in names}


def prepare(models: Mapping[str, Path], scratch: Path) -> list[PreparedModel]:
    """As a pool prepares them."""
    configs = [ModelConfig(name, path, max_context_tokens=CONTEXT_TOKENS) for name, path in models.items()]
    return prepare_models(configs, BLOCK_TOKENS, scratch)[0]


def measure_interference(models: Sequence[PreparedModel]) -> tuple[float, float]:
    """How many times longer prefill and decode take on one instance while the other kind runs on another one."""
    options = ProbeOptions(THREADS, CHUNK_TOKENS, _KV_TOKENS, BATCH)
    with Probe(models[:1], options) as first, Probe(models[1:2], options) as second:
        names = models[0].spec.name, models[1].spec.name

        def prefill() -> float:
            return first.run_turn(names[0], (Script(256, 1, decoding=False),)).prefill_s

        def decode() -> float:
            return second.run_turn(names[1], (Script(128, 16, decoding=True),) * 8).decode_step_s

        for _ in range(_WARM_PROMPTS):
            prefill(), decode()
        alone = median(prefill() for _ in range(9)), median(decode() for _ in range(9))
        return _beside(prefill, decode) / alone[0], _beside(decode, prefill) / alone[1]


def _beside(measured: Callable[[], float], load: Callable[[], float]) -> float:
    """Median of ``measured`` while ``load`` runs all the time in another thread (and another process)."""
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            load()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        deadline_s = time.monotonic() + _INTERFERENCE_S
        values = []
        while time.monotonic() < deadline_s:
            values.append(measured())
    finally:
        stop.set()
        thread.join()
    return median(values)


def serve_arguments(models: Mapping[str, Path], out: Path, weight_cache_bytes: int, log: Path) -> list[str]:
    """Arguments of ``aegaeon serve``."""
    return [
        *(f"{name}={path}" for name, path in models.items()),
        *("--instances", "prefill=1,decode=1", "--threads-per-instance", str(THREADS)),
        *("--max-context-tokens", str(CONTEXT_TOKENS), "--max-batch-requests", str(BATCH)),
        *("--prefill-chunk-tokens", str(CHUNK_TOKENS), "--profile-dir", str(out)),
        *("--kv-cache", str(KV_CACHE_BYTES), "--slab-size", str(SLAB_BYTES)),
        *("--weight-cache", str(weight_cache_bytes), "--event-log", str(log)),
    ]


async def replay(url: str, jobs: Sequence[Job], slo: Slo) -> RealRun:
    """Send a load's requests and wait for their replies."""
    async with http_client(url, 300.0) as client:
        started_s, before = time.monotonic(), CpuTimes.now()
        replies = await Replay(client, slo, _Silent()).run(jobs)
        duration_s, after = time.monotonic() - started_s, CpuTimes.now()
    own_s, all_s = after.own_s - before.own_s, after.all_s - before.all_s
    records = [reply.record for reply in replies]
    return RealRun(records, duration_s, own_s / duration_s, (all_s - own_s) / duration_s)


async def warm_up(url: str, names: Sequence[str]) -> float:
    """Run every model until it is as fast as it gets; then the way of a request on the idle pool, in seconds.

    That is what a client waits for the first token beside the hand-over and the prefill itself: HTTP, the frontend, the
    way to the driver, and the token's way back.
    """
    slo = Slo(60.0, 1.0)
    async with http_client(url, 300.0) as client:
        for name in names:
            warm = [Job(f"warm-{name}-{index}", name, 0.0, 64, 24) for index in range(_WARM_PROMPTS)]
            await Replay(client, slo, _Silent()).run(warm)
        ways = []
        for index in range(24):
            job = Job(f"way-{index}", names[index % len(names)], 0.0, 64, 8)
            ways.append(_way_s((await Replay(client, slo, _Silent()).run([job]))[0]))
    return median(ways)


def _way_s(reply: Reply) -> float:
    """TTFT less what the instance spent: waiting for its weights and its command, and computing."""
    spans = [span for span in reply.spans if span.phase is Phase.PREFILL]
    assert reply.record.ttft_s is not None, reply.record.error
    return reply.record.ttft_s - sum(span.end_s - span.start_s for span in spans)


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """Seconds of compute since the machine started: of this process and its descendants, and of everybody."""

    own_s: float
    all_s: float

    @classmethod
    def now(cls) -> CpuTimes:
        tick_s = 1.0 / os.sysconf("SC_CLK_TCK")
        own = sum(_ticks(pid) for pid in ProcessTree.now().descendants({os.getpid()}))
        fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
        user, nice, system, _idle, _wait, irq, softirq = map(int, fields[:7])
        return cls(own * tick_s, (user + nice + system + irq + softirq) * tick_s)


def _ticks(pid: int) -> int:
    """User and system time of a process; 0 where it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])


class _Silent:
    """A replay's observer that shows nothing."""

    def sent(self, job: Job) -> None:
        return

    def first_token(self, job: Job) -> None:
        return

    def done(self, job: Job, reply: Reply) -> None:
        return


def run_sync(url: str, jobs: Sequence[Job], slo: Slo) -> RealRun:
    """``replay`` outside of a loop."""
    return asyncio.run(replay(url, jobs, slo))


def read_log(path: Path, start_s: float, end_s: float) -> list[LogEntry]:
    """What a pool that has ended logged between two times of this machine's monotonic clock."""
    entries = [decode(line) for line in path.read_text("utf-8").splitlines()]
    return [entry for entry in entries if start_s <= entry.now_s <= end_s]


def pool(arguments: Sequence[str], log: Path) -> PoolProcess:
    """A pool in processes of its own."""
    return PoolProcess(arguments, log)
