"""Figure 17(b): a 72B model family on groups of four devices (TP4), attainment as rates grow, a curve per SLO.

    python3 plot_tp4.py

Reads ``plots/json``, ``plots/json/tp4``, and what the artifact comes with, ``plots/tp4/<models>-<rate>.json``. Writes
``tp4.png`` and ``tp4.pdf``, see ``plot_e2e.py`` for where.

Does not know: how records are found and read.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a script: the folder above has the packages
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from plots.options import add_metric, add_policy, parser, run
from plots.panel import TP4_PANELS
from plots.slo_curves import draw_slo_curves


def draw(options: argparse.Namespace) -> list[Path]:
    """Draw the figure, return the files."""
    return draw_slo_curves(TP4_PANELS, options, "tp4")


def options() -> argparse.ArgumentParser:
    """The command line."""
    made = parser(__doc__, subfolder="tp4")
    add_metric(made)
    add_policy(made)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status."""
    return run(draw, options().parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
