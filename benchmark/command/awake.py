"""Keeps the machine's cores from falling asleep while something is measured on them.

A core of a virtual machine that has nothing to do is given away, and what runs on it after a pause finds other people's
data in its caches: steps after a pause took up to 1.3 times as long. Spinners of the idle scheduling class hold the
cores without taking anything from whoever wants to run.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_SPIN = """
import os, sys
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
while os.getppid() == int(sys.argv[1]):  # whoever is killed leaves no spinner behind
    for _ in range(10_000_000): pass
"""


@contextmanager
def awake_cores() -> Iterator[frozenset[int]]:
    """While it lasts every core spins; gives the spinners' process ids."""
    cores = os.sched_getaffinity(0)
    spinners = [subprocess.Popen([sys.executable, "-S", "-c", _SPIN, str(os.getpid())]) for _ in cores]
    try:
        yield frozenset(spinner.pid for spinner in spinners)
    finally:
        for spinner in spinners:
            spinner.kill()
        for spinner in spinners:
            spinner.wait()
