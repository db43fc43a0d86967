"""What the simulator's commands have in common: how errors and Ctrl-C end them, and what their tables look like."""

from __future__ import annotations

import sys
from collections.abc import Callable

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from aegaeon.json_file import JsonFileError
from aegaeon.latency.estimate.errors import LatencyError
from aegaeon.memory.slab_ledger import OutOfSlabsError
from aegaeon.scheduler.contract import ContractError
from aegaeon.workload import WorkloadError
from sim.systems.errors import InputError

_COMPLAINTS = (InputError, WorkloadError, LatencyError, JsonFileError, OutOfSlabsError, ContractError, OSError)
_PIPE_WIDTH = 160  # tables are not folded where nobody looks


def run_command(program: str, body: Callable[[], int]) -> int:
    """Exit status: the body's; 2 after a complaint about options or files, in a line; 130 after Ctrl-C."""
    try:
        return body()
    except _COMPLAINTS as error:
        sys.stderr.write(f"{program}: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130


def make_console(*, stderr: bool = False) -> Console:
    """Where tables go, or progress."""
    made = Console(stderr=stderr, highlight=False)
    return made if made.is_terminal else Console(stderr=stderr, highlight=False, width=_PIPE_WIDTH)


def make_table(title: str, first: str, *others: str) -> Table:
    """Names in the first column, numbers in the others."""
    made = Table(title=title, box=SIMPLE_HEAD, pad_edge=False)
    made.add_column(first)
    for heading in others:
        made.add_column(heading, justify="right", no_wrap=True)
    return made
