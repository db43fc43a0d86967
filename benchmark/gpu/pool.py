"""The suite's last stage: a pool on the device under a minute of traffic, and the simulator's prediction beside it.

The simulator gets the profiles that an earlier stage has measured here, and the pool's own arithmetic of capacities.
Nothing is fitted to the pool's run.
"""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isnan
from pathlib import Path
from typing import Any

import quick_model_loader as qml
from aegaeon.core.config import InstanceConfig, PoolConfig
from aegaeon.core.instance import Role
from aegaeon.core.record import RequestRecord
from aegaeon.core.slo import Slo
from aegaeon.latency.estimate.errors import LatencyError
from aegaeon.latency.files.profile_book import ProfileBook, ProfileEntry
from aegaeon.metrics import RunMetrics
from aegaeon.profiling.target import Target
from aegaeon.scheduler.log import LogEntry
from aegaeon.settings.machine import read_machine
from aegaeon.workload import QuantileTable, SyntheticSpec, synthesize
from benchmark.e2e.job import LengthLimits, ReplayJob
from benchmark.gpu.profile import CONTEXT_TOKENS, profile_target
from benchmark.policies.pool_commands import PoolCommands

Record = dict[str, Any]
LEAST_RATE_PER_S, MOST_RATE_PER_S = 0.1, 0.5
_NEEDS = ("ray", "fastapi", "uvicorn")
_SLO, _PATIENT = Slo(), Slo(300.0, 10.0)
_LIMITS = {"cuda": LengthLimits(2048, 256), "cpu": LengthLimits(256, 48)}
_KV_CACHE_BYTES = {"cuda": 8 << 30, "cpu": 128 << 20}
_LEAST_DEVICE_BYTES = 128 << 20


@dataclass(frozen=True, slots=True)
class PoolLoad:
    """``models`` that are served, of requests for ``seconds``."""

    models: int
    seconds: float


@dataclass(frozen=True, slots=True)
class SuitePool:
    """One mixed instance on one device. ``shapes``: of each served model, by its name. No size is left to guess."""

    target: Target
    shapes: Mapping[str, str]
    weight_cache_bytes: int
    kv_cache_bytes: int
    device_bytes: int
    resident_models: int

    @property
    def config(self) -> PoolConfig:
        """The configuration that the pool itself will have, but for the models."""
        return PoolConfig(
            models=(),
            device=self.target.kind,
            instances=(InstanceConfig(Role.MIXED, 1),),
            threads_per_instance=self.target.threads,
            resident_models=self.resident_models,
            copy_to_device=True,
            device_bytes=self.device_bytes,
            page_bytes=self.target.page_bytes,
        )

    def serve_arguments(self, folders: Mapping[str, Path], profiles: Path, log: Path) -> list[str]:
        """Arguments of ``aegaeon serve``."""
        return [
            *(f"{name}={folders[shape]}" for name, shape in self.shapes.items()),
            *(
                "--device",
                self.target.kind,
                "--instances",
                "mixed=1",
                "--copy-to-device",
                "--policy",
                self.config.policy,
            ),
            *("--threads-per-instance", str(self.target.threads), "--resident-models", str(self.resident_models)),
            *("--weight-cache", str(self.weight_cache_bytes), "--kv-cache", str(self.kv_cache_bytes)),
            *("--device-memory", str(self.device_bytes), "--page-size", str(self.target.page_bytes)),
            *("--max-context-tokens", str(CONTEXT_TOKENS[self.target.kind]), "--event-log", str(log)),
            *(("--profile-dir", str(profiles)) if profiles.is_dir() else ()),
        ]


def pool(kind: str, folders: Mapping[str, Path], work: Path, load: PoolLoad) -> Iterator[Record]:
    """What a real pool did with a load, and what the simulator says it would."""
    missing = [name for name in _NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        yield {"side": f"not measured: {' and '.join(missing)} cannot be imported here"}
        return
    target, profiles = profile_target(kind), work / "profiles"
    planned = plan_pool(target, {name: qml.inspect(path).buffer_bytes for name, path in folders.items()}, load.models)
    jobs = make_jobs(list(planned.shapes), load.seconds, _LIMITS[kind], CONTEXT_TOKENS[kind])
    yield _mix(planned, jobs)
    with tempfile.TemporaryDirectory(prefix="aegaeon-gpu-pool-") as scratch:
        log = Path(scratch) / "events.jsonl"
        arguments = planned.serve_arguments(folders, profiles, log)
        records, entries, start_s = _run(arguments, Path(scratch) / "pool.log", log, jobs)
    yield _outcome("measured", records, entries, start_s)
    try:
        measured = _entries(profiles, target.name, planned.shapes)
    except LatencyError as error:
        yield {"side": f"not simulated: {error} (--stage profile comes first)"}
        return
    from benchmark.gpu.pool_sim import simulate

    sizes = (planned.kv_cache_bytes, planned.weight_cache_bytes)
    yield _outcome("simulated", *simulate(jobs, _SLO, planned.config, *sizes, measured), 0.0)


def plan_pool(target: Target, shape_bytes: Mapping[str, int], count: int, room_bytes: int | None = None) -> SuitePool:
    """``count`` models of the shapes in turn, of which half may be on the device at once.

    Where they would take more than two fifths of the host's memory, the smallest stands in for the largest ones, first
    for those that are there twice.
    """
    room_bytes = (read_machine().room_bytes if room_bytes is None else room_bytes) * 2 // 5
    names = list(shape_bytes)
    chosen = [names[index % len(names)] for index in range(count)]
    smallest = min(names, key=lambda name: shape_bytes[name])
    while sum(map(shape_bytes.__getitem__, chosen)) > room_bytes and set(chosen) != {smallest}:
        larger = [name for name in chosen if name != smallest]
        twice = [name for name in larger if chosen.count(name) > 1]
        largest = max(twice or larger, key=lambda name: shape_bytes[name])
        chosen[len(chosen) - 1 - chosen[::-1].index(largest)] = smallest
    in_cache = sorted((-(-shape_bytes[name] // qml.CHUNK_BYTES) * qml.CHUNK_BYTES for name in chosen), reverse=True)
    resident = max(2, count // 2)
    return SuitePool(
        target,
        {f"{name}-{index}": name for index, name in enumerate(chosen)},
        sum(in_cache),
        _KV_CACHE_BYTES[target.kind],
        max(_LEAST_DEVICE_BYTES, -(-sum(in_cache[:resident]) * 4 // 3)),  # a quarter is for KV
        resident,
    )


def make_jobs(names: Sequence[str], seconds: float, limits: LengthLimits, context_tokens: int) -> list[ReplayJob]:
    """Poisson arrivals at rates from the least to the most, evenly apart; ShareGPT's lengths, capped."""
    lengths, jobs = QuantileTable.shipped(), list[ReplayJob]()
    for index, name in enumerate(names):
        rate_per_s = LEAST_RATE_PER_S + (MOST_RATE_PER_S - LEAST_RATE_PER_S) * index / max(1, len(names) - 1)
        for arrival in synthesize(SyntheticSpec(1, rate_per_s, seconds, seed=index), lengths):
            inputs, outputs = limits.apply(arrival, context_tokens)
            jobs.append(ReplayJob(f"{name}-{len(jobs):05d}", name, arrival.time_s, inputs, outputs))
    return sorted(jobs, key=lambda job: job.time_s)


def _run(
    arguments: Sequence[str], pool_log: Path, event_log: Path, jobs: Sequence[ReplayJob]
) -> tuple[list[RequestRecord], list[LogEntry], float]:
    """Records, the scheduler's log, and when the load began; every model has been used once before."""
    from benchmark.e2e.pool import PoolProcess
    from benchmark.fidelity import pool as real  # brings in the server's and Ray's world

    names = dict.fromkeys(job.model for job in jobs)
    warm = [ReplayJob(f"warm-{name}", name, 0.0, 64, 24) for name in names]
    with PoolProcess(arguments, pool_log) as running:
        real.replay(running.url, warm, _PATIENT)
        start_s = time.monotonic()
        records = real.replay(running.url, jobs, _SLO).records
        end_s = time.monotonic()
    return records, real.read_log(event_log, [(0.0, end_s)])[0], start_s


def _entries(profiles: Path, device: str, shapes: Mapping[str, str]) -> dict[str, ProfileEntry]:
    """The profile of each served model. Raises ``LatencyError``."""
    book = ProfileBook.open(profiles)
    return {name: replace(book.find(shape, device), model=name) for name, shape in shapes.items()}


def _mix(planned: SuitePool, jobs: Sequence[ReplayJob]) -> Record:
    counts = {shape: list(planned.shapes.values()).count(shape) for shape in dict.fromkeys(planned.shapes.values())}
    return {
        "side": ", ".join(f"{count} x {shape}" for shape, count in counts.items()),
        "policy": planned.config.policy,
        "requests": len(jobs),
        "resident_models": planned.resident_models,
    }


def _outcome(side: str, records: Sequence[RequestRecord], entries: Sequence[LogEntry], start_s: float) -> Record:
    did = PoolCommands.of(entries, start_s)
    seen = RunMetrics.of(records)
    return {
        "side": side,
        "requests": seen.requests,
        "failed": seen.failed,
        "attainment": seen.slo_attainment,
        "qos": seen.qos,
        "ttft_p50_s": _known(seen.ttft_s.p50),
        "ttft_p99_s": _known(seen.ttft_s.p99),
        "tpot_p50_s": _known(seen.tpot_s.p50),
        "turns": did.turns,
        "switches": did.switches,
        "loads": did.loads,
    }


def _known(value: float) -> float | None:
    """JSON has no number that is none."""
    return None if isnan(value) else value
