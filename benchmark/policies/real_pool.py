"""The pool that policies are compared on: models, their profiles, one load on a fresh pool.

One mixed instance of a thread, worked with as if it were a GPU: weights and KV are copied to device pages, which hold
``RESIDENT_MODELS`` of the ``MODELS``.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from aegaeon.core.record import RequestRecord
from aegaeon.core.slo import Slo
from aegaeon.profiling.target import copying_target
from aegaeon.toy_models.make_model import make_model
from aegaeon.toy_models.model_request import ModelSizes
from aegaeon.workload import QuantileTable, SyntheticSpec, synthesize
from benchmark.e2e.job import LengthLimits, ReplayJob, TargetModel, plan_jobs
from benchmark.e2e.pool import PoolProcess
from benchmark.fidelity import pool as real
from benchmark.policies.pool_commands import PoolCommands

MODELS = 8
KINDS = {
    "llama": ModelSizes(hidden_size=512, layers=8, heads=8, kv_heads=4, vocab_size=4096),
    "qwen3": ModelSizes(hidden_size=640, layers=8, heads=10, kv_heads=5, vocab_size=4096),
}
RESIDENT_MODELS = 3
DEVICE_BYTES = 384 << 20
THREADS, CONTEXT_TOKENS = real.THREADS, real.CONTEXT_TOKENS
BATCH = 16
CHUNK_TOKENS = 128  # a step with a chunk takes less than the TPOT target
LIMITS = LengthLimits(320, 320)
_KV_CACHE_BYTES = 512 << 20
_WEIGHT_CACHE_BYTES = 2 << 30
_WARM_REQUESTS, _WARM_TOKENS = 3, 16


@dataclass(frozen=True, slots=True)
class Leg:
    """One load under one policy: what clients saw, how busy the machine was, what the scheduler had done."""

    policy: str
    records: list[RequestRecord]
    duration_s: float
    own_cores: float
    other_cores: float
    commands: PoolCommands


def ensure_models(folder: Path) -> dict[str, Path]:
    """The models by name, made where they are not there; the folder of each is called like its kind."""
    models = {}
    for index in range(MODELS):
        kind = list(KINDS)[index % len(KINDS)]
        models[f"m{index}"] = path = folder / str(index) / kind
        if not path.is_dir():
            make_model(kind, path, KINDS[kind], seed=index)
    return models


def profile(models: Mapping[str, Path], out: Path) -> None:
    """Profile a model of each kind, going on with what is in ``out``; it holds for all folders of that name.

    Raises ``ProfilingError``.
    """
    kinds = {path.name: path for path in models.values()}
    real.profile(kinds, out, CHUNK_TOKENS, BATCH, copying_target(THREADS, DEVICE_BYTES))


def make_jobs(names: Sequence[str], rate_per_s: float, seconds: float, seed: int) -> list[ReplayJob]:
    """A load: Poisson arrivals, ``rate_per_s`` of all models together, ShareGPT-like lengths with shorter prompts."""
    spec = SyntheticSpec(len(names), rate_per_s / len(names), seconds, input_scale=0.2, seed=seed)
    served = [TargetModel(name, CONTEXT_TOKENS) for name in names]
    return plan_jobs(synthesize(spec, QuantileTable.shipped()), served, LIMITS)


def run_leg(
    policy: str, models: Mapping[str, Path], profiles: Path, jobs: Sequence[ReplayJob], slo: Slo, apart: frozenset[int]
) -> Leg:
    """Start a pool, warm it up, replay the jobs. Raises ``PoolError``."""
    with tempfile.TemporaryDirectory(prefix="aegaeon-policies-") as scratch:
        log = Path(scratch) / "events.jsonl"
        with PoolProcess(serve_arguments(policy, models, profiles, log), Path(scratch) / "pool.log") as served:
            real.warm_up(served.url, list(models), _WARM_REQUESTS, _WARM_TOKENS)
            start_s = time.monotonic()
            run = real.replay(served.url, jobs, slo, apart)
        [entries] = real.read_log(log, [(0.0, float("inf"))])
        commands = PoolCommands.of(entries, start_s)
    return Leg(policy, run.records, run.duration_s, run.own_cores, run.other_cores, commands)


def serve_arguments(policy: str, models: Mapping[str, Path], profiles: Path, log: Path) -> list[str]:
    """Arguments of ``aegaeon serve``."""
    return [
        *(f"{name}={path}" for name, path in models.items()),
        *("--policy", policy, "--instances", "mixed=1", "--threads-per-instance", str(THREADS)),
        *("--copy-to-device", "--device-memory", str(DEVICE_BYTES), "--resident-models", str(RESIDENT_MODELS)),
        *("--max-context-tokens", str(CONTEXT_TOKENS), "--max-batch-requests", str(BATCH)),
        *("--prefill-chunk-tokens", str(CHUNK_TOKENS), "--profile-dir", str(profiles)),
        *("--kv-cache", str(_KV_CACHE_BYTES), "--weight-cache", str(_WEIGHT_CACHE_BYTES), "--event-log", str(log)),
    ]
