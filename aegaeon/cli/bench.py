"""Finds the benchmark, which is part of the source tree and not of the installed package.

Does not know: what it measures.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import aegaeon
from aegaeon.settings.error import SettingsError

Main = Callable[[Sequence[str]], int | None]


def benchmark_main() -> Callable[[Sequence[str]], int]:
    """``main`` of ``benchmark/benchmark_e2e.py`` beside this package; raises ``SettingsError`` where there is none."""
    root = Path(aegaeon.__file__).parent.parent
    if not (root / "benchmark" / "benchmark_e2e.py").exists():
        raise SettingsError(
            "the benchmark is not part of the installed package; get the source tree and run there:\n"
            "python3 benchmark/benchmark_e2e.py"
        )
    sys.path.insert(0, str(root))
    main: Main = importlib.import_module("benchmark.benchmark_e2e").main
    return lambda arguments: main(arguments) or 0
