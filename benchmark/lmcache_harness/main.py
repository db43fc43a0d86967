"""The command of LMCache's test harness:

    python -m benchmark.lmcache_harness FILE [-f PATTERN] [-l] [-o DIR] [-m MODEL] [-p PORT PORT]

Runs the functions of a file, ``benchmark/lmcache_harness/tests.py`` or another like it, and writes what each returns to
``DIR/<function>.csv``; ``python -m plots.process_result CSV`` draws it. With ``-m`` the name goes on with the part of
the model's name before the slash, or with its folder's. Beside it a JSON file says the same and whose code it was.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from types import ModuleType

from rich.console import Console
from rich.table import Table

from aegaeon.cli.terminal.console import make_console
from benchmark.command.errors import BenchmarkUsageError
from benchmark.command.main import run_command
from benchmark.command.result_file import write_result
from benchmark.e2e.small_models import BENCH_MODELS_DIR, bench_models, ensure_models
from benchmark.lmcache_harness.config import COLUMNS, Row

HarnessFunction = Callable[[Path, tuple[int, int]], Sequence[Row]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status."""
    options, console = _parser().parse_args(arguments), make_console()
    return run_command("lmcache_harness", lambda: _run(options, console))


def _run(options: argparse.Namespace, console: Console) -> int:
    found = functions(load(options.filepath), options.filter)
    if options.list:
        console.print("\n".join(found), highlight=False)
        return 0
    if not found:
        raise BenchmarkUsageError(f"{options.filepath} has no function that matches {options.filter!r}; -l lists them")
    model = _model(options.model, console)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    for name, function in found.items():
        console.print(f"{name}: {inspect.getdoc(function) or ''}", highlight=False)
        rows = function(model, (options.ports[0], options.ports[1]))
        path = options.output_dir / f"{name}{_suffix(options.model)}.csv"
        write_csv(path, rows)
        write_result(path.with_suffix(".json"), "lmcache harness", {"test": name, "model": model.name, "rows": rows})
        console.print(table_of(name, rows))
        console.print(f"{path}", soft_wrap=True, highlight=False)
    return 0


def load(path: Path) -> ModuleType:
    """The module of a file. Raises ``BenchmarkUsageError``."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise BenchmarkUsageError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (ImportError, SyntaxError) as error:
        raise BenchmarkUsageError(f"{path} cannot be loaded: {error}") from error
    return module


def functions(module: ModuleType, pattern: str) -> dict[str, HarnessFunction]:
    """Functions that stand in the file and whose name has the pattern in it, in the file's order."""
    try:
        wanted = re.compile(pattern)
    except re.error as error:
        raise BenchmarkUsageError(f"-f {pattern!r} is no regular expression: {error}") from error
    members = vars(module).items()
    return {
        name: member
        for name, member in members
        if inspect.isfunction(member) and member.__module__ == module.__name__ and wanted.search(name)
    }


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """The columns of the original, and no others."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def table_of(name: str, rows: Sequence[Row]) -> Table:
    """An engine a line, by experiment: its first answer, and its later ones."""
    table = Table(title=name, title_justify="left")
    for column in (
        "context",
        "engine",
        "first TTFT (s)",
        "later, median (s)",
        "ratio",
        "found of later prompts",
        "failed",
    ):
        table.add_column(column, justify="right")
    by_engine: dict[tuple[int, int], list[Row]] = {}
    for row in rows:
        by_engine.setdefault((row["expr_id"], row["engine_id"]), []).append(row)
    for (_, engine), mine in sorted(by_engine.items()):
        table.add_row(f"{mine[0]['context_len']}", f"{engine}", *_cells(mine))
    return table


def _cells(rows: Sequence[Row]) -> list[str]:
    first, *later = rows
    failed = sum(row["TTFT"] < 0 for row in rows)
    if failed or not later:
        return [f"{first['TTFT']:.3f}", "", "", "", f"{failed}"]
    later_s = median(row["TTFT"] for row in later)
    found = sum(row["cached_tokens"] for row in later) / max(1, sum(row["prompt_tokens"] for row in later))
    return [f"{first['TTFT']:.3f}", f"{later_s:.3f}", f"{later_s / first['TTFT']:.2f}", f"{found:.1%}", "0"]


def _model(model: str | None, console: Console) -> Path:
    """A model's folder; a small one is made where none is named."""
    if model is None:
        return ensure_models(bench_models(1), BENCH_MODELS_DIR, console.print)["small-00"]
    if not Path(model).is_dir():
        raise BenchmarkUsageError(f"-m {model}: there is no such folder; models are served from folders here")
    return Path(model).resolve()


def _suffix(model: str | None) -> str:
    if model is None:
        return ""
    path = Path(model)
    return f"_{path.parts[0] if len(path.parts) == 2 and not path.is_absolute() else path.resolve().name}"


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="lmcache_harness", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("filepath", type=Path, metavar="FILE", help="functions that return rows of a table")
    made.add_argument("-f", "--filter", default="test_", metavar="PATTERN", help="of functions' names  [%(default)s]")
    made.add_argument("-l", "--list", action="store_true", help="list the functions, run none")
    made.add_argument("-o", "--output-dir", type=Path, default=Path("outputs"), metavar="DIR", help="[%(default)s]")
    made.add_argument("-m", "--model", metavar="MODEL", help="a model's folder  [a small one, made once]")
    made.add_argument(
        "-p", "--ports", type=_port, nargs=2, default=(0, 0), metavar="PORT", help="of the two engines  [any]"
    )
    return made


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{port} is no port")
    return port


if __name__ == "__main__":
    sys.exit(main())
