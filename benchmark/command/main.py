"""How every benchmark is run: its errors in a line, Ctrl-C, logs, awake cores; and who draws its results."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
from rich.console import Console

from aegaeon.cli.terminal.logs import configure_logs
from aegaeon.json_file import JsonFileError
from aegaeon.latency.estimate.errors import LatencyError
from aegaeon.profiling.errors import ProfilingError
from aegaeon.scheduler.layout import NoPlacementError
from aegaeon.workload import WorkloadError
from benchmark.command.awake import awake_cores
from benchmark.command.errors import BenchmarkError
from benchmark.command.interrupt import run_to_end
from benchmark.command.result_file import RESULTS, ROOT

_ERRORS = (
    BenchmarkError,
    ProfilingError,
    WorkloadError,
    LatencyError,
    NoPlacementError,
    JsonFileError,
    OSError,
    httpx.HTTPError,
    subprocess.CalledProcessError,
)


def run_command(program: str, body: Callable[[], int]) -> int:
    """The body's exit code; 2 where it could not be done, which is told in a line; 130 after Ctrl-C."""
    try:
        return run_to_end(body)
    except _ERRORS as error:
        sys.stderr.write(f"{program}: {error or type(error).__name__}\n")
        return 2


def run_measuring(program: str, body: Callable[[frozenset[int]], int]) -> int:
    """The same with no log lines and with awake cores: the body gets the processes that keep them so."""
    configure_logs(None)
    with awake_cores() as spinners:
        return run_command(program, lambda: body(spinners))


def add_measuring_options(parser: argparse.ArgumentParser, rounds: int, work: Path) -> None:
    """Options of whatever measures real pools, in rounds."""
    parser.add_argument(
        "--rounds", type=count, default=rounds, help="of all loads, with other requests each time  [%(default)s]"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=work, help="models and their profiles")
    parser.add_argument("--out", type=Path, default=RESULTS)


def count(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def amount(text: str) -> float:
    """A positive, finite number, for argparse."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be positive, got {text}")
    return value


def draw_result(path: Path, console: Console) -> None:
    """Have the figure of a result file drawn beside it, and say what came of it."""
    command = [sys.executable, "-m", "plots.results", str(path.resolve())]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    console.print(f"{path}, {(done.stdout or done.stderr).strip()}", soft_wrap=True, markup=False)
