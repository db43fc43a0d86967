"""Figures of this project's own benchmarks and studies, each drawn beside its results:

    python3 -m plots.results benchmark/results/fidelity.json

A result file says in ``benchmark`` what it is of.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

if not __package__:  # run as a script: the folder above has the packages
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from plots.benchmarks.fidelity import draw_fidelity
from plots.benchmarks.lmcache import draw_lmcache
from plots.benchmarks.loader import draw_loader
from plots.benchmarks.marconi import draw_marconi
from plots.benchmarks.paged import draw_paged_blocks, draw_paged_memory, draw_paged_rates
from plots.benchmarks.policies import draw_policies
from plots.benchmarks.prefix_reuse import draw_prefix_reuse
from plots.benchmarks.runtime_policies import draw_runtime_policies
from plots.benchmarks.timeline import draw_timeline
from plots.curves.usage import PlotUsageError
from plots.options import command_line, run
from plots.read.json_file import read_object, reading

DRAW: Mapping[str, Callable[[Mapping[str, Any], Path], None]] = MappingProxyType(
    {
        "fidelity": draw_fidelity,
        "lmcache harness": draw_lmcache,
        "loader": draw_loader,
        "marconi": draw_marconi,
        "paged blocks": draw_paged_blocks,
        "paged memory": draw_paged_memory,
        "paged rates": draw_paged_rates,
        "policies": draw_policies,
        "prefix reuse": draw_prefix_reuse,
        "runtime policies": draw_runtime_policies,
        "timeline": draw_timeline,
    }
)


def draw(options: argparse.Namespace) -> list[Path]:
    """Draw the figure of each file, return the files. Raises ``PlotUsageError``."""
    return [_draw(path) for path in options.results]


def _draw(path: Path) -> Path:
    content = read_object(path)
    benchmark = str(content.get("benchmark"))
    if benchmark not in DRAW:
        raise PlotUsageError(f"{path} is of no benchmark that has a figure; those that have: {', '.join(DRAW)}")
    picture = path.with_suffix(".png")
    with reading(path, f"results of {benchmark}"):
        DRAW[benchmark](content, picture)
    return picture


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status."""
    options = command_line(__doc__)
    options.add_argument("results", type=Path, nargs="+", metavar="FILE", help="results of a benchmark, JSON")
    return run(draw, options.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
