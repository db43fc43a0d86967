"""``make gpu``: what the CUDA backend reaches on this machine's GPU, in stages.

Each stage runs in a process of its own under its own time limit; what it measured is written as soon as it ends, so
that a stage that fails or hangs costs nothing but itself. All but the last stage run without Ray. ``--device cpu
--models tiny`` tries the suite out without a GPU.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmark.command.main import amount, count, run_command
from benchmark.command.result_file import RESULTS, write_result

LIMITS_S = {
    "models": 70,
    "limits": 25,
    "tokens": 35,
    "switch": 90,
    "decode": 80,
    "prefill": 50,
    "kv": 30,
    "overlap": 35,
    "profile": 60,
    "pool": 120,
}
"""The stages in order, and how long each may take, in seconds: under ten minutes together. See docs/cuda.md."""

DEFAULT_MODELS = ("qwen2.5-0.5b", "qwen2.5-7b", "yi-1.5-9b", "llama-2-13b")
NO_GPU = 2
_RESULTS = RESULTS / "gpu.json"
_PAGE_BYTES = {"cuda": 64 << 20, "cpu": 2 << 20}
_MARK = "RECORD "
_EXCEPTION = re.compile(r"[\w.]+(Error|Exception): ")
_GRACE_S = 25.0


@dataclass(frozen=True, slots=True)
class SuiteOptions:
    """The command line. ``pool_models``, ``pool_seconds``: of the last stage. ``patience``: times the limits."""

    stages: tuple[str, ...]
    models: tuple[str, ...]
    device: str
    work: Path
    out: Path
    kv_gib: float
    pool_models: int
    pool_seconds: float
    patience: float


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0, 1 where a stage failed, 2 where there is no GPU, 130 after Ctrl-C."""
    given = _parser().parse_args(arguments)
    options = SuiteOptions(
        tuple(given.stage or LIMITS_S),
        tuple(given.models),
        given.device,
        given.work,
        given.out or (_RESULTS if given.device == "cuda" else given.work / _RESULTS.name),
        given.kv_gib,
        given.pool_models,
        given.pool_seconds,
        given.patience,
    )
    return run_command("gpu_suite", lambda: _run_stage(given.run, options) if given.run else _run(options))


def _run(options: SuiteOptions) -> int:
    console = Console(width=120)
    found = _device(options.device)
    if isinstance(found, str):
        console.print(f"make gpu needs a GPU: {found}. Nothing was measured.", highlight=False, soft_wrap=True)
        return NO_GPU
    return _run_all(options, found, console)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmark.gpu_suite", description="Measure the CUDA backend.")
    parser.add_argument("--stage", action="append", choices=tuple(LIMITS_S), help="only this one (may be repeated)")
    parser.add_argument("--models", nargs="+", default=list(DEFAULT_MODELS), help="shapes, see gpu_models.py")
    parser.add_argument("--device", default="cuda", choices=tuple(_PAGE_BYTES))
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "aegaeon-gpu-models")
    parser.add_argument("--out", type=Path, help="file  [benchmark/results/gpu.json; a try-out's: WORK/gpu.json]")
    parser.add_argument("--kv-gib", type=amount, default=24.0, help="device memory for KV")
    parser.add_argument("--pool-models", type=count, default=10, help="models that the pool serves")
    parser.add_argument("--pool-seconds", type=amount, default=60.0, help="of traffic for the pool")
    parser.add_argument("--patience", type=amount, default=1.0, help="how many times as long as its limit a stage has")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    return parser


def _device(kind: str) -> dict[str, Any] | str:
    """What is measured; a text says why it cannot be."""
    if kind == "cpu":
        return {"name": platform.machine(), "kind": kind}
    from aegaeon.device.cuda.driver import CudaError, NoCudaError
    from aegaeon.device.cuda.inventory import find_gpus, kernel_driver

    try:
        gpu = find_gpus()[0]
    except (NoCudaError, CudaError) as error:
        return str(error)
    versions = {"cuda": gpu.driver_version, "driver": kernel_driver()}
    return {"name": gpu.name, "kind": kind, "memory_bytes": gpu.total_bytes, **versions}


def _run_all(options: SuiteOptions, device: dict[str, Any], console: Console) -> int:
    results: dict[str, Any] = {
        "device": device,
        "torch": metadata.version("torch"),
        "models": list(options.models),
        "stages": {},
    }
    for stage in options.stages:
        records, problem = _in_process(stage, options)
        results["stages"][stage] = {"records": records, "failed": problem}
        write_result(options.out, "gpu", results)
        _show(console, stage, records, problem)
    console.print(f"written to {options.out}", highlight=False)
    return int(any(stage["failed"] for stage in results["stages"].values()))


def _in_process(stage: str, options: SuiteOptions) -> tuple[list[dict[str, Any]], str | None]:
    """A stage's records, and what went wrong; what it had measured before is kept."""
    command = [sys.executable, "-m", "benchmark.gpu_suite", "--run", stage, "--device", options.device]
    command += ["--work", str(options.work), "--kv-gib", str(options.kv_gib), "--models", *options.models]
    command += ["--pool-models", str(options.pool_models), "--pool-seconds", str(options.pool_seconds)]
    limit_s = LIMITS_S[stage] * options.patience
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        output, errors = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        return _records(_stop(process)), f"took longer than {limit_s:g} s"
    except BaseException:  # Ctrl-C too: nothing may stay behind
        _stop(process)
        raise
    return _records(output), _problem(errors, process.returncode) if process.returncode else None


def _problem(errors: str, code: int) -> str:
    """The exception that ended a stage, without the many lines that it may have; else what was said last."""
    lines = errors.strip().splitlines() or [f"exit code {code}"]
    return next((line for line in reversed(lines) if _EXCEPTION.match(line)), lines[-1])


def _stop(process: subprocess.Popen[str]) -> str:
    """Ask a stage to end, so that it can end what it started; what it has said."""
    process.terminate()
    try:
        return process.communicate(timeout=_GRACE_S)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        return process.communicate()[0]


def _records(output: str) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix(_MARK)) for line in output.splitlines() if line.startswith(_MARK)]


def _run_stage(stage: str, options: SuiteOptions) -> int:
    """In a process of its own: each record goes out as soon as it is there."""
    for record in _measure(stage, options):
        print(_MARK + json.dumps(record), flush=True)
    return 0


def _measure(stage: str, options: SuiteOptions) -> Iterator[dict[str, Any]]:
    from benchmark.gpu.models import write_model, write_models

    if stage == "models":
        yield from write_models(options.models, options.work)
        return
    names = options.models[:1] if stage in ("limits", "tokens") else options.models
    folders = {name: write_model(name, options.work) for name in names}
    if stage == "profile":
        from benchmark.gpu.profile import profile

        yield from profile(options.device, folders, options.work / "profiles")
    elif stage == "pool":
        from benchmark.gpu.pool import PoolLoad, pool

        load = PoolLoad(options.pool_models, options.pool_seconds)
        yield from pool(options.device, folders, options.work, load)
    else:
        yield from _on_rig(stage, folders, options)


def _on_rig(stage: str, folders: dict[str, Path], options: SuiteOptions) -> Iterator[dict[str, Any]]:
    from benchmark.gpu import stages as gpu_stages
    from benchmark.gpu.rig import Rig

    measure = getattr(gpu_stages, stage)
    if stage == "tokens":
        measure = partial(measure, folders=folders)
    if stage == "overlap" and len(folders) == 1:  # it takes two
        folders = {**folders, **{f"{name}, again": folder for name, folder in folders.items()}}
    with Rig(options.device, folders, _PAGE_BYTES[options.device], int(options.kv_gib * 2**30)) as rig:
        yield from measure(rig)


def _show(console: Console, stage: str, records: Sequence[dict[str, Any]], problem: str | None) -> None:
    columns = list(dict.fromkeys(key for record in records for key in record))
    table = Table(
        *(column.replace("_", " ") for column in columns), title=stage, title_justify="left", box=None, pad_edge=False
    )
    for record in records:
        table.add_row(*(_cell(key, record.get(key)) for key in columns))
    console.print(table)
    if problem is not None:
        console.print(f"[red]{stage} failed:[/] {problem}", highlight=False, soft_wrap=True)


def _cell(key: str, value: object) -> str:
    if not isinstance(value, float):
        return "" if value is None else str(value)
    seconds = key == "seconds" or (key.endswith("_s") and not key.endswith("per_s"))
    return f"{value * 1e3:.3f} ms" if seconds else f"{value:.3f}"


if __name__ == "__main__":
    sys.exit(main())
