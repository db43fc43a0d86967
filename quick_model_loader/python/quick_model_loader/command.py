"""The command: arguments in, tables out."""

from __future__ import annotations

import argparse
import os
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from quick_model_loader import CancelToken, Checkpoint, Entry, LoaderError, Store, Ticket, __version__, inspect

Result = TypeVar("Result")
_INTERVAL_S = 0.1
_GB = 1e9


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status: 0, 1 if the checkpoint is bad, 2 for wrong arguments, 130 after Ctrl-C."""
    parser = _parser()
    options = parser.parse_args(arguments)
    console = Console()
    try:
        options.run(console, options)
    except LoaderError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("quick_model_loader", description="Safetensors checkpoints: look, check, measure.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, run, text in (
        ("info", _info, "show files, tensors and types"),
        ("hash", _hash, "write the checksums that `verify`, and loads that ask for it, compare with"),
        ("verify", _verify, "compare every byte with the checksums"),
        ("bench", _bench, "load it into a store, cold and warm, and show how fast"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("directory", type=Path, metavar="DIR", help="a checkpoint: a directory or one file")
        command.set_defaults(run=run)
        if name != "info":
            command.add_argument("--threads", type=_positive, help="how many threads read")
        if name == "bench":
            command.add_argument("--repeat", type=_positive, default=3, help="how often (default: 3)")
            command.add_argument("--verify", action="store_true", help="verify checksums while loading")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


def _info(console: Console, options: argparse.Namespace) -> None:
    checkpoint = inspect(options.directory)
    files = Table("file", "tensors", "bytes", "header", title=escape(str(checkpoint.path)))
    tensors_in = Counter(tensor.file for tensor in checkpoint.tensors.values())
    for number, file in enumerate(checkpoint.files):
        files.add_row(escape(file.path.name), f"{tensors_in[number]:,}", f"{file.bytes:,}", f"{file.header_bytes:,}")
    console.print(files)
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for tensor in checkpoint.tensors.values():
        counts[tensor.dtype] += 1
        sizes[tensor.dtype] += tensor.nbytes
    dtypes = Table("type", "tensors", "bytes")
    for dtype, nbytes in sizes.most_common():
        dtypes.add_row(dtype, f"{counts[dtype]:,}", f"{nbytes:,}")
    console.print(dtypes)
    console.print(f"{len(checkpoint.tensors):,} tensors, {checkpoint.total_bytes:,} bytes on disk")


def _hash(console: Console, options: argparse.Namespace) -> None:
    checkpoint = inspect(options.directory)
    token = CancelToken()
    written = _watch(
        console,
        "hashing",
        checkpoint.total_bytes,
        lambda: token.bytes,
        lambda: checkpoint.write_checksums(threads=options.threads, cancel=token),
    )
    for path in written:
        console.print(f"wrote {escape(str(path))}", soft_wrap=True)


def _verify(console: Console, options: argparse.Namespace) -> None:
    checkpoint = inspect(options.directory)
    token = CancelToken()
    _watch(
        console,
        "verifying",
        checkpoint.total_bytes,
        lambda: token.bytes,
        lambda: checkpoint.verify(threads=options.threads, cancel=token),
    )
    console.print(f"{len(checkpoint.files)} files are intact ({checkpoint.total_bytes:,} bytes)")


def _bench(console: Console, options: argparse.Namespace) -> None:
    checkpoint = inspect(options.directory)
    table = Table("", "GB/s, median", "best", "past the page cache", title=f"{checkpoint.total_bytes:,} bytes")
    with Store(checkpoint.buffer_bytes, threads=options.threads) as store:
        _wait_for_pages(console, store)
        for name, prepare in (("cold", _drop_from_page_cache), ("warm", _read_into_page_cache)):
            speeds, direct = [], 0.0
            for _ in range(options.repeat):
                prepare(checkpoint)
                ticket = store.load(options.directory, verify=options.verify)
                entry = _watch_load(console, name, ticket)
                report = entry.report
                assert report is not None
                speeds.append(report.bytes / report.seconds / _GB)
                direct = report.direct_bytes / report.bytes
                entry.close()
                store.evict(ticket.key)
            table.add_row(name, f"{statistics.median(speeds):.2f}", f"{max(speeds):.2f}", f"{direct:.0%}")
        stats = store.stats()
    console.print(table)
    console.print(f"{stats.threads} threads, {stats.pages} pages ({stats.huge_bytes / stats.prepared_bytes:.0%} huge)")


def _watch_load(console: Console, text: str, ticket: Ticket) -> Entry:
    return _watch(console, text, inspect(ticket.path).total_bytes, lambda: ticket.progress.bytes, ticket.result)


def _wait_for_pages(console: Console, store: Store) -> None:
    capacity = store.stats().capacity_bytes

    def wait() -> None:
        while store.stats().prepared_bytes < capacity:
            time.sleep(_INTERVAL_S)

    _watch(console, "memory", capacity, lambda: store.stats().prepared_bytes, wait)


def _drop_from_page_cache(checkpoint: Checkpoint) -> None:
    for file in checkpoint.files:
        with file.path.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read_into_page_cache(checkpoint: Checkpoint) -> None:
    for file in checkpoint.files:
        with file.path.open("rb", buffering=0) as opened:
            while opened.read(1 << 20):
                pass


def _watch(
    console: Console, text: str, total_bytes: int, done_bytes: Callable[[], int], work: Callable[[], Result]
) -> Result:
    """Do the work here, while a bar shows how far it is (on terminals only)."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    hidden = not console.is_terminal
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=hidden) as progress:
        task = progress.add_task(text, total=total_bytes)
        over = threading.Event()

        def show() -> None:
            while not over.wait(_INTERVAL_S):
                progress.update(task, completed=done_bytes())

        thread = threading.Thread(target=show, name="progress", daemon=True)
        thread.start()
        try:
            return work()
        finally:
            over.set()
            thread.join()
