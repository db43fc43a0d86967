"""The figure of a CSV file of LMCache's test harness, its or ours: ``<name>.pdf`` beside it.

python3 -m plots.process_result outputs/test_lmcache_local_cpu.csv
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: the folder above has the packages
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from plots.benchmarks.lmcache import harness_figure
from plots.curves.usage import PlotUsageError
from plots.draw.style import figure_style
from plots.options import command_line, run

_WHOLE = ("expr_id", "engine_id", "request_id", "context_len")


def draw(options: argparse.Namespace) -> list[Path]:
    """Draw the figure of each file, return the files. Raises ``PlotUsageError``."""
    return [_draw(path) for path in options.results]


def _draw(path: Path) -> Path:
    with figure_style():
        picture = path.with_suffix(".pdf")
        harness_figure(read_rows(path)).savefig(picture, metadata={"CreationDate": None})
    return picture


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows by experiment, with numbers where there are numbers. Raises ``PlotUsageError``."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [_row(row) for row in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, TypeError, ValueError) as error:
        raise PlotUsageError(f"{path} is no result of the harness: {type(error).__name__}: {error}") from error
    if not rows:
        raise PlotUsageError(f"{path} has no rows")
    return sorted(rows, key=lambda row: (row["expr_id"], row["request_id"]))


def _row(row: dict[str, str]) -> dict[str, Any]:
    numbers = {name: int(row[name]) for name in _WHOLE}
    return {**row, **numbers, **{name: float(row[name]) for name in ("TTFT", "throughput")}}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status."""
    options = command_line(__doc__)
    options.add_argument("results", type=Path, nargs="+", metavar="FILE", help="CSV of benchmark.lmcache_harness")
    return run(draw, options.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
