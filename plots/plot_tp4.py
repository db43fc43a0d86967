"""Figure 17(b): a 72B model family on groups of four devices (TP4), attainment as rates grow, a curve per SLO.

    python3 plot_tp4.py

Reads ``plots/json``, ``plots/json/tp4``, and what the artifact comes with, ``plots/tp4/<models>-<rate>.json``. Writes
``tp4.png`` and ``tp4.pdf``, see ``plot_e2e.py`` for where.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script: the folder above has the packages
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from plots.hardware import hardware_figure
from sim.panels import TP4_PANELS

FIGURE = hardware_figure("tp4", TP4_PANELS, __doc__)
main = FIGURE.main

if __name__ == "__main__":
    sys.exit(main())
