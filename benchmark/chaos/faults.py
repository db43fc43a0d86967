"""What is done to a pool: its processes are killed or stopped, at random, one at a time."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import httpx

from benchmark.e2e.process_tree import ProcessTree, title


class Fault(StrEnum):
    """``KILL`` and ``STOP`` hit one instance: SIGKILL, and SIGSTOP that nobody ends; the others are kill -9.

    The forks are the process that a node's instances are forked from, which end with it. The driver is one that works,
    not one that stands by. The pool is the process that started Ray, and with it all drivers and instances.
    """

    KILL = "instance killed"
    STOP = "instance stopped"
    FORKS = "forks killed"
    DRIVER = "driver killed"
    SERVER = "server killed"
    POOL = "pool killed"

    @property
    def victim(self) -> str:
        """What it is done to."""
        return self.value.split()[0]


# What the title of the process has in it; instances are found by the pool's own state.
_TITLES = {
    Fault.FORKS: "-driver-fo",
    Fault.DRIVER: "ray::DriverActor",
    Fault.SERVER: "aegaeon.cli.service.server_process",
    Fault.POOL: "aegaeon.cli.service.pool_process",
}
_STANDS_BY = "DriverActor.stand_by"


@dataclass(frozen=True, slots=True)
class Hit:
    """A fault that was done to process ``pid`` at ``time_s``; ``recovered_s``: when every open stream had moved on."""

    fault: Fault
    pid: int
    time_s: float
    recovered_s: float | None = None

    @property
    def recovery_s(self) -> float:
        return float("inf") if self.recovered_s is None else self.recovered_s - self.time_s


class Victims:
    """Finds the processes of a pool, which change with every fault."""

    def __init__(self, pool_pid: int, url: str) -> None:
        self._pool_pid = pool_pid
        self._url = url

    def hit(self, fault: Fault, random_: random.Random) -> Hit | None:
        """Do it to one of those that can be hit; None where there is none just now."""
        pids = sorted(self._candidates(fault))
        if not pids:
            return None
        pid = random_.choice(pids)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP if fault is Fault.STOP else signal.SIGKILL)
        return Hit(fault, pid, time.monotonic())

    def descriptors(self) -> Mapping[str, int]:
        """Open descriptors of each process that lives long, by what it is and its number."""
        return {
            f"{fault.victim} {pid}": descriptors
            for fault in (Fault.FORKS, Fault.DRIVER, Fault.SERVER)
            for pid in self._candidates(fault)
            if (descriptors := _descriptors(pid))
        }

    def _candidates(self, fault: Fault) -> Sequence[int]:
        if fault in (Fault.KILL, Fault.STOP):
            return self._instances()
        pool = ProcessTree.now().descendants({self._pool_pid})
        return [pid for pid in pool if _TITLES[fault] in (said := title(pid)) and _STANDS_BY not in said]

    def _instances(self) -> list[int]:
        try:
            state = httpx.get(f"{self._url}/admin/state", timeout=10.0).raise_for_status().json()
        except (httpx.HTTPError, ValueError):
            return []
        return [instance["pid"] for instance in state["instances"] if instance["pid"]]


def _descriptors(pid: int) -> int:
    with contextlib.suppress(OSError):  # it ended meanwhile
        return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    return 0
