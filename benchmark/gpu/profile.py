"""The suite's profiles: ``aegaeon profile --quick`` for the suite's models, on the suite's device."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aegaeon.core.config import PoolConfig
from aegaeon.device.cuda.inventory import find_gpus
from aegaeon.latency.files.profile_file import ProfileFile
from aegaeon.profiling.campaign import Campaign
from aegaeon.profiling.errors import ProfilingError
from aegaeon.profiling.target import Target, copying_target, gpu_target
from aegaeon.settings.machine import gpu_room_bytes, read_machine
from aegaeon.source_commit import source_commit

_CPU_MEMORY_BYTES = 512 << 20
_KV_SHARE, _MOST_KV_BYTES = 4, 8 << 30  # of the device's memory
_MAX_ERROR = {"cuda": 0.25, "cpu": 0.99}  # a quick look; on a processor the suite is only tried out
CONTEXT_TOKENS = {"cuda": 4096, "cpu": 640}
"""The longest that is measured and served, by the kind of device."""
_SERVED = PoolConfig(models=())


def profile_target(kind: str) -> Target:
    """The device that the suite measures; the processor is worked with as if it were a GPU, on one thread."""
    if kind == "cpu":
        return copying_target(1, _CPU_MEMORY_BYTES)
    gpus = find_gpus()
    return gpu_target(gpus, max(1, len(os.sched_getaffinity(0)) // len(gpus)), gpu_room_bytes(gpus[0].free_bytes))


def profile(kind: str, folders: Mapping[str, Path], out: Path) -> Iterator[dict[str, Any]]:
    """Profile the models, going on with what is in ``out``. Raises ``ProfilingError`` where a fit is bad."""
    target = profile_target(kind)
    assert target.memory_bytes is not None, "the suite's devices are copied to"
    campaign = Campaign(
        folders,
        out,
        target.threads,
        min(_MOST_KV_BYTES, min(target.memory_bytes, read_machine().room_bytes) // _KV_SHARE),
        _SERVED.prefill_chunk_tokens,
        _SERVED.max_batch_requests,
        CONTEXT_TOKENS[kind],
        _MAX_ERROR[kind],
        quick=True,
        fresh=False,
        date=datetime.now(UTC).date().isoformat(),
        target=target,
        commit=source_commit(),
    )
    files, problems = campaign.run(lambda done, total, text: None)
    yield from map(_record, files)
    if problems:
        raise ProfilingError("; ".join(problems))


def _record(file: ProfileFile) -> dict[str, Any]:
    times = file.coefficients.profile
    record: dict[str, Any] = {"model": file.model, "prefill_512_s": times.prefill_s([512])}
    record |= {"decode_8x512_s": times.decode_step_s(8 * 512, 8)}
    if file.fit is not None:
        record |= {"error_%": max(file.fit.prefill_percent, file.fit.decode_percent)}
    if file.switching is not None:
        record |= file.switching.model_dump()
    if file.copying is not None:
        rates = {name.removesuffix("_bytes_per_s"): rate for name, rate in file.copying.model_dump().items()}
        record |= {f"{name}_gb_per_s": rate / 1e9 for name, rate in rates.items()}
    return record
