"""``aegaeon profile``: measure models on this machine, show how it goes, write what it came to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from aegaeon.cli.gpus import gpus
from aegaeon.cli.terminal.console import make_console
from aegaeon.cli.terminal.logs import configure_logs
from aegaeon.cli.terminal.progress import progress_on
from aegaeon.settings.checkpoint import weight_bytes
from aegaeon.settings.error import SettingsError
from aegaeon.settings.machine import default_instances, gpu_room_bytes, read_machine

if TYPE_CHECKING:
    from aegaeon.profiling.campaign import Campaign
    from aegaeon.profiling.target import Target

_DEVICES = ("auto", "cpu", "cuda")
_KV_SHARE = 4  # of the free memory, for the largest batch
_MOST_KV_BYTES = 2 << 30


@dataclass(frozen=True, slots=True)
class ProfileOptions:
    """The command line; ``threads`` None: as many as an instance of a pool would have here."""

    models: Sequence[str]
    device: str
    threads: int | None
    out: Path
    quick: bool
    fresh: bool
    max_error: float
    max_context_tokens: int
    prefill_chunk_tokens: int
    max_batch_requests: int


def profile(options: ProfileOptions) -> int:
    """Profile each model; the exit code: 1 where a fit was bad and no profile was written. Raises ``SettingsError``."""
    folders = _folders(options.models)
    _check(options)
    configure_logs(None)
    from aegaeon.profiling.errors import ProfilingError  # brings in torch

    try:
        return _run(options, folders, make_console())
    except ProfilingError as error:
        raise SettingsError(str(error)) from error


def _folders(models: Sequence[str]) -> Mapping[str, Path]:
    """Folders by model name: ``NAME=DIR``, or ``DIR`` whose name is the model's."""
    folders: dict[str, Path] = {}
    for argument in models:
        name, equals, folder = argument.rpartition("=")
        path = Path(folder).expanduser()
        name = name if equals else path.resolve().name
        if not name:
            raise SettingsError(f"{argument!r} names no model; write NAME=DIR, or DIR")
        if name in folders:
            raise SettingsError(f"two models are called {name!r}; name one of them: NAME=DIR")
        weight_bytes(path)  # raises where it cannot be a checkpoint
        folders[name] = path
    if not folders:
        raise SettingsError("no model to profile; name folders: aegaeon profile path/to/model")
    return folders


def _check(options: ProfileOptions) -> None:
    if options.device not in _DEVICES:
        raise SettingsError(f"--device {options.device!r}: choose from {', '.join(_DEVICES)}")
    cores = read_machine().cores
    if options.threads is not None and not 1 <= options.threads <= cores:
        raise SettingsError(f"--threads must be between 1 and the {cores} cores of this machine, got {options.threads}")
    if not 0 < options.max_error < 1:
        raise SettingsError(f"--max-error is a share such as 0.1, got {options.max_error:g}")
    if options.out.exists() and not options.out.is_dir():
        raise SettingsError(f"--out {options.out} is a file; give a folder")
    for flag, value, least in (
        ("--max-context", options.max_context_tokens, 64),
        ("--prefill-chunk-tokens", options.prefill_chunk_tokens, 1),
        ("--max-batch-requests", options.max_batch_requests, 1),
    ):
        if value < least:
            raise SettingsError(f"{flag} must be at least {least}, got {value}")


def _run(options: ProfileOptions, folders: Mapping[str, Path], console: Console) -> int:
    from aegaeon.latency.report import fit_table
    from aegaeon.profiling.report import copying_table, switching_table

    campaign = _campaign(options, folders)
    with progress_on(make_console(stderr=True), "starting an instance") as tell:
        files, problems = campaign.run(tell)
    if files:
        console.print(fit_table(files))
        console.print(switching_table(files))
        console.print(copying_table(files))
        typer.echo(f"{len(files)} profiles written under {options.out / files[0].device}")
        typer.echo(f"serve with them: aegaeon serve ... --profile-dir {options.out}")
    for problem in problems:
        typer.echo(f"aegaeon: {problem}", err=True)
    return int(bool(problems))


def _target(options: ProfileOptions) -> Target:
    """Raises ``SettingsError`` where the GPU that is asked for is not there."""
    from aegaeon.profiling.target import cpu_target, gpu_target

    machine = read_machine()
    found, problem = ((), "") if options.device == "cpu" else gpus()
    if found:
        threads = options.threads or max(1, machine.cores // len(found))
        return gpu_target(found, threads, gpu_room_bytes(found[0].free_bytes))
    if options.device == "cuda":
        raise SettingsError(f"--device cuda: {problem}; use --device cpu")
    return cpu_target(options.threads or max(1, machine.cores // default_instances(machine)))


def _campaign(options: ProfileOptions, folders: Mapping[str, Path]) -> Campaign:
    from aegaeon.profiling.campaign import Campaign
    from aegaeon.source_commit import source_commit

    target = _target(options)
    most_kv_bytes = _MOST_KV_BYTES if target.memory_bytes is None else target.memory_bytes // _KV_SHARE
    return Campaign(
        folders=folders,
        out=options.out,
        threads=target.threads,
        kv_bytes=min(most_kv_bytes, read_machine().room_bytes // _KV_SHARE),
        chunk_tokens=options.prefill_chunk_tokens,
        max_batch_requests=options.max_batch_requests,
        max_context_tokens=options.max_context_tokens,
        max_error=options.max_error,
        quick=options.quick,
        fresh=options.fresh,
        date=datetime.now(UTC).date().isoformat(),
        target=target,
        commit=source_commit(),
    )
