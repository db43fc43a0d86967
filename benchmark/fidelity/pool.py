"""The real side of the fidelity benchmark: models, their profiles, and a pool that replays loads."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from aegaeon.core.slo import Slo
from aegaeon.latency.files.profile_book import ProfileBook, ProfileEntry
from aegaeon.profiling.campaign import Campaign
from aegaeon.profiling.errors import ProfilingError
from aegaeon.profiling.target import Target
from aegaeon.runtime.process.process import processor_ticks
from aegaeon.scheduler.log import LogEntry, decode
from aegaeon.toy_models.make_model import make_model
from aegaeon.toy_models.model_request import ModelSizes
from benchmark.e2e.job import ReplayJob
from benchmark.e2e.process_tree import ProcessTree
from benchmark.e2e.replay import Replay, Replayed, http_client
from benchmark.fidelity.measured import RealRun

SIZES = ModelSizes(hidden_size=512, layers=8, heads=8, kv_heads=4, vocab_size=4096)
ARCHITECTURES = ("llama", "qwen3", "llama", "qwen3")
THREADS = 1  # the other core is for the server, the driver and the clients
CONTEXT_TOKENS = 640
BATCH = 8
CHUNK_TOKENS = 512
BLOCK_TOKENS = 16
KV_CACHE_BYTES = 256 << 20
SLAB_BYTES = 16 << 20
WARM_PROMPTS = 40  # until the weights of a prefill instance are packed: a piece a step


def ensure_models(folder: Path) -> dict[str, Path]:
    """The models by name, made where they are not there."""
    models = {f"model-{index}": folder / f"model-{index}" for index in range(len(ARCHITECTURES))}
    for index, (path, architecture) in enumerate(zip(models.values(), ARCHITECTURES, strict=True)):
        if not path.is_dir():
            make_model(architecture, path, SIZES, seed=index)
    return models


def profile(
    models: Mapping[str, Path],
    out: Path,
    chunk_tokens: int = CHUNK_TOKENS,
    batch: int = BATCH,
    target: Target | None = None,
) -> None:
    """Profile the models here, going on with what is in ``out``. Raises ``ProfilingError``."""
    campaign = Campaign(
        models,
        out,
        THREADS,
        kv_bytes=64 << 20,
        chunk_tokens=chunk_tokens,
        max_batch_requests=batch,
        max_context_tokens=CONTEXT_TOKENS,
        max_error=0.10,
        quick=False,
        fresh=False,
        date=datetime.now(UTC).date().isoformat(),
        target=target,
    )
    problems = campaign.run(lambda done, total, text: None)[1]
    if problems:
        raise ProfilingError("\n".join(problems))


def profiles(out: Path, device: str, names: Sequence[str]) -> dict[str, ProfileEntry]:
    """What ``profile`` wrote."""
    book = ProfileBook.open(out)
    return {name: book.find(name, device) for name in names}


def serve_arguments(
    policy: str, models: Mapping[str, Path], out: Path, weight_cache_bytes: int, log: Path
) -> list[str]:
    """Arguments of ``aegaeon serve``."""
    return [
        *(f"{name}={path}" for name, path in models.items()),
        *("--policy", policy),
        *("--instances", "mixed=1", "--threads-per-instance", str(THREADS)),
        *("--max-context-tokens", str(CONTEXT_TOKENS), "--max-batch-requests", str(BATCH)),
        *("--prefill-chunk-tokens", str(CHUNK_TOKENS), "--profile-dir", str(out)),
        *("--kv-cache", str(KV_CACHE_BYTES), "--slab-size", str(SLAB_BYTES)),
        *("--weight-cache", str(weight_cache_bytes), "--event-log", str(log)),
    ]


def replay(url: str, jobs: Sequence[ReplayJob], slo: Slo, apart: frozenset[int] = frozenset()) -> RealRun:
    """Send a load's requests and wait for their replies. What the processes ``apart`` compute is not counted."""
    return asyncio.run(_replay(url, jobs, slo, apart))


async def _replay(url: str, jobs: Sequence[ReplayJob], slo: Slo, apart: frozenset[int]) -> RealRun:
    async with http_client(url, 300.0) as client:
        started_s, before = time.monotonic(), CpuTimes.now(apart)
        replies = await Replay(client, slo, _Silent()).run(jobs)
        duration_s, after = time.monotonic() - started_s, CpuTimes.now(apart)
    own_s, all_s = after.own_s - before.own_s, after.all_s - before.all_s
    records = [reply.record for reply in replies]
    return RealRun(records, duration_s, own_s / duration_s, (all_s - own_s) / duration_s)


def warm_up(url: str, names: Sequence[str], requests: int, new_tokens: int) -> None:
    """Have every model read from disk, built and used, one after the other."""
    for name in names:
        warm = [ReplayJob(f"warm-{name}-{index}", name, 0.0, 64, new_tokens) for index in range(requests)]
        replay(url, warm, Slo(60.0, 1.0))


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """Seconds of compute since the machine started: of this process and its descendants, and of everybody.

    Without those ``apart``.
    """

    own_s: float
    all_s: float

    @classmethod
    def now(cls, apart: frozenset[int]) -> CpuTimes:
        tick_s = 1.0 / os.sysconf("SC_CLK_TCK")
        own = sum(_ticks(pid) for pid in ProcessTree.now().descendants({os.getpid()}) - apart)
        fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
        user, nice, system, _idle, _wait, irq, softirq = map(int, fields[:7])
        return cls(own * tick_s, (user + nice + system + irq + softirq - sum(map(_ticks, apart))) * tick_s)


def _ticks(pid: int) -> int:
    """User and system time of a process; 0 where it has ended."""
    with contextlib.suppress(OSError):
        return processor_ticks(pid)
    return 0


class _Silent:
    """A replay's observer that shows nothing."""

    def sent(self, job: ReplayJob) -> None:
        return

    def first_token(self, job: ReplayJob) -> None:
        return

    def done(self, job: ReplayJob, reply: Replayed) -> None:
        return


def read_log(path: Path, spans_s: Sequence[tuple[float, float]]) -> list[list[LogEntry]]:
    """What a pool that has ended logged in each of the spans of this machine's monotonic clock."""
    entries = [decode(line) for line in path.read_text("utf-8").splitlines()]
    return [[entry for entry in entries if start_s <= entry.now_s <= end_s] for start_s, end_s in spans_s]
