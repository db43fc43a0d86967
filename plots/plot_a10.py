"""Figure 17(a): Aegaeon on A10 devices, attainment as models grow, a curve per SLO.

    python3 plot_a10.py

Reads ``plots/json``, ``plots/json/a10``, and what the artifact comes with, ``plots/a10/<models>-<rate>.json``. Writes
``a10.png`` and ``a10.pdf``, see ``plot_e2e.py`` for where.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script: the folder above has the packages
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from plots.hardware import hardware_figure
from sim.panels import A10_PANELS

FIGURE = hardware_figure("a10", A10_PANELS, __doc__)
main = FIGURE.main

if __name__ == "__main__":
    sys.exit(main())
