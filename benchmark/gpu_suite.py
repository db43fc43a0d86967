"""``make gpu``: what the CUDA backend reaches on this machine's GPU, in stages, without Ray.

Each stage runs in a process of its own under its own time limit; results are written after each, so that a stage that
fails or hangs costs nothing but itself. ``--device cpu --models tiny`` tries the suite out without a GPU.

Does not know: how anything is measured.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

LIMITS_S = {"limits": 60, "tokens": 120, "switch": 150, "decode": 240, "prefill": 120, "kv": 60, "overlap": 90}
"""The stages in order, and how long each may take, in seconds."""

DEFAULT_MODELS = ("qwen2.5-7b", "yi-1.5-9b", "llama-2-13b")
NO_GPU = 2
_PAGE_BYTES = {"cuda": 64 << 20, "cpu": 2 << 20}
_MARK = "RECORD "


@dataclass(frozen=True, slots=True)
class SuiteOptions:
    """The command line."""

    stages: tuple[str, ...]
    models: tuple[str, ...]
    device: str
    work: Path
    out: Path
    kv_gib: float


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0, 1 where a stage failed, 2 where there is no GPU."""
    parser = _parser()
    given = parser.parse_args(arguments)
    options = SuiteOptions(
        tuple(given.stage or LIMITS_S), tuple(given.models), given.device, given.work, given.out, given.kv_gib
    )
    if given.run:
        return _run_stage(given.run, options)
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
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "gpu.json")
    parser.add_argument("--kv-gib", type=float, default=16.0, help="device memory for KV, and as much host memory")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    return parser


def _device(kind: str) -> dict[str, Any] | str:
    """What is measured; a text says why it cannot be."""
    if kind == "cpu":
        return {"name": platform.machine(), "kind": kind}
    from aegaeon.device.cuda_driver import CudaError, NoCudaError
    from aegaeon.device.cuda_inventory import find_gpus

    try:
        gpu = find_gpus()[0]
    except (NoCudaError, CudaError) as error:
        return str(error)
    return {"name": gpu.name, "kind": kind, "memory_bytes": gpu.total_bytes, "cuda": gpu.driver_version}


def _run_all(options: SuiteOptions, device: dict[str, Any], console: Console) -> int:
    results: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device,
        "models": list(options.models),
        "stages": {},
    }
    for stage in options.stages:
        records, problem = _in_process(stage, options)
        results["stages"][stage] = {"records": records, "failed": problem}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        _show(console, stage, records, problem)
    console.print(f"written to {options.out}", highlight=False)
    return int(any(stage["failed"] for stage in results["stages"].values()))


def _in_process(stage: str, options: SuiteOptions) -> tuple[list[dict[str, Any]], str | None]:
    """A stage's records, and what went wrong; what it had measured before is kept."""
    command = [sys.executable, "-m", "benchmark.gpu_suite", "--run", stage, "--device", options.device]
    command += ["--work", str(options.work), "--kv-gib", str(options.kv_gib), "--models", *options.models]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMITS_S[stage], check=False)
    except subprocess.TimeoutExpired as error:
        output = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
        return _records(output), f"took longer than {LIMITS_S[stage]} s"
    problem = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1] if done.returncode else None
    return _records(done.stdout), problem


def _records(output: str) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix(_MARK)) for line in output.splitlines() if line.startswith(_MARK)]


def _run_stage(stage: str, options: SuiteOptions) -> int:
    """In a process of its own: each record goes out as soon as it is there."""
    for record in _measure(stage, options):
        print(_MARK + json.dumps(record), flush=True)
    return 0


def _measure(stage: str, options: SuiteOptions) -> Iterator[dict[str, Any]]:
    from benchmark import gpu_stages
    from benchmark.gpu_models import write_model
    from benchmark.gpu_rig import Rig

    names = options.models if stage not in ("limits", "tokens") else options.models[:1]
    folders = {name: write_model(name, options.work) for name in names}
    functions = {name: getattr(gpu_stages, name) for name in LIMITS_S}
    functions["tokens"] = partial(gpu_stages.tokens, folders=folders)
    with Rig(options.device, folders, _PAGE_BYTES[options.device], int(options.kv_gib * 2**30)) as rig:
        yield from functions[stage](rig)


def _show(console: Console, stage: str, records: Sequence[dict[str, Any]], problem: str | None) -> None:
    columns = list(dict.fromkeys(key for record in records for key in record))
    table = Table(*columns, title=stage, title_justify="left", box=None, pad_edge=False)
    for record in records:
        table.add_row(*(_cell(key, record.get(key)) for key in columns))
    console.print(table)
    if problem is not None:
        console.print(f"[red]{stage} failed:[/] {problem}", highlight=False, soft_wrap=True)


def _cell(key: str, value: object) -> str:
    if isinstance(value, float):
        return f"{value * 1e3:.3f} ms" if key == "seconds" else f"{value:.3f}"
    return "" if value is None else str(value)


if __name__ == "__main__":
    sys.exit(main())
