"""Runs the benchmark as a command."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence

Main = Callable[[Sequence[str], str], int | None]


def benchmark_main() -> Callable[[Sequence[str]], int]:
    """``main`` of ``benchmark/benchmark_e2e.py``, found by name: it is a client of the pool, not a part of it."""
    main: Main = importlib.import_module("benchmark.benchmark_e2e").main
    return lambda arguments: main(arguments, "aegaeon bench") or 0
