"""Checks the simulated managers and scheduler against values that the original ones gave on a load without chance.

    python3 -m sim.study.paged.check

Request i of N arrives at i / rate, with a prompt of 16 + 37 i mod 500 and an output of 16 + 71 i mod 600 tokens; 981
blocks of 16 tokens, 1,638 on the host. Exit status 1 where a value is further off than 2 %, or than five preemptions.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np

from aegaeon.core.kv_shape import KvShape, LayerKv
from sim.study.command import make_console, make_table, run_command
from sim.study.paged.engine import FcfsEngine
from sim.study.paged.step_cost import StepCost
from sim.systems.kv.group import Forks, SequenceGroup
from sim.systems.kv.manager import KvManager
from sim.systems.kv.orca import OrcaKv
from sim.systems.kv.paged import PagedKv

BLOCKS, HOST_BLOCKS = 981, 1638
TOLERANCE = 0.02
PREEMPTIONS_TOLERANCE = 5
SHAPE = KvShape((LayerKv(40, 128, 128),) * 40)
COST = StepCost(base_s=0.020, prompt_token_s=0.1e-3, decode_sequence_s=0.5e-3, prompt_sequence_s=0.5e-3)
_FORK_EVERY = 4


@dataclass(frozen=True, slots=True)
class CheckLoad:
    """``beam``: at every fourth token the later half of the sequences takes over the past of the first."""

    rate: float
    requests: int
    sequences: int = 1
    beam: bool = False

    def groups(self) -> list[SequenceGroup]:
        return [
            SequenceGroup(
                i / self.rate,
                16 + 37 * i % 500,
                16 + 71 * i % 600,
                self.sequences,
                self._forks() if self.beam else None,
            )
            for i in range(self.requests)
        ]

    def _forks(self) -> Iterator[tuple[int, Forks]]:
        half = -(-self.sequences // 2)
        pairs = [(child, child - half) for child in range(half, self.sequences)]
        return ((number, pairs) for number in count(_FORK_EVERY, _FORK_EVERY))

    @property
    def label(self) -> str:
        kind = "beam " if self.beam else "n"
        return f"{kind}{self.sequences}, {self.rate:g}/s"


@dataclass(frozen=True, slots=True)
class CheckValues:
    """What a system makes of a load; None where the original's value is not known."""

    normalized_latency_s: float
    running: float | None = None
    token_share: float | None = None
    preempted: int | None = None
    saving: float | None = None
    used_share: float | None = None
    end_s: float | None = None


def manager(system: str) -> KvManager:
    """``paged``, or an estimate of Orca's."""
    return PagedKv(SHAPE, BLOCKS, HOST_BLOCKS) if system == "paged" else OrcaKv(16, BLOCKS, system)


def measure(system: str, load: CheckLoad) -> CheckValues:
    """What this project's code gives."""
    groups = load.groups()
    columns = FcfsEngine(manager(system), COST, groups).run().columns()
    return CheckValues(
        normalized_latency_s=float(np.mean([group.normalized_latency_s for group in groups])),
        running=float(columns["running"].mean()),
        token_share=float(columns["tokens"].mean()) / (BLOCKS * 16),
        preempted=int(columns["preempted"].sum()),
        saving=1 - 1 / float(np.mean(columns["logical_blocks"] / columns["used_blocks"])),
        used_share=float(columns["used_blocks"].mean()) / BLOCKS,
        end_s=max(group.finish_s or 0.0 for group in groups),
    )


_N1, _BUSY = CheckLoad(2, 200), CheckLoad(4, 200)
_N2, _N6 = CheckLoad(2, 60, 2), CheckLoad(1, 60, 6)
_BEAM2, _BEAM6 = CheckLoad(2, 60, 2, beam=True), CheckLoad(1, 60, 6, beam=True)

VECTORS: tuple[tuple[str, CheckLoad, CheckValues], ...] = (
    ("paged", _N1, CheckValues(0.0311, 16.65, 0.499, 0, used_share=0.507, end_s=111.9)),
    ("oracle", _N1, CheckValues(0.0740, 13.64, 0.408, 0, used_share=0.814, end_s=128.4)),
    ("power2", _N1, CheckValues(0.1673, 9.95, 0.298, used_share=0.821, end_s=162.4)),
    ("constant", _N1, CheckValues(0.3480, 6.77, 0.203, used_share=0.884, end_s=221.3)),
    ("paged", _BUSY, CheckValues(0.0993, 25.15, 0.753, 104, end_s=89.3)),
    ("oracle", _BUSY, CheckValues(0.2023, 14.18, 0.424, end_s=124.8)),
    ("power2", _BUSY, CheckValues(0.2974, 10.38, 0.311, end_s=157.0)),
    ("constant", _BUSY, CheckValues(0.4894, 6.81, 0.204, end_s=220.2)),
    ("paged", _N2, CheckValues(0.0422, preempted=24, saving=0.2615)),
    ("oracle", _N2, CheckValues(0.1111)),
    ("power2", _N2, CheckValues(0.1718)),
    ("constant", _N2, CheckValues(0.3129)),
    ("paged", _N6, CheckValues(0.1054, preempted=146, saving=0.4385)),
    ("oracle", _N6, CheckValues(0.4291)),
    ("constant", _N6, CheckValues(1.0210)),
    ("paged", _BEAM2, CheckValues(0.0404, preempted=0, saving=0.4761)),
    ("oracle", _BEAM2, CheckValues(0.1111)),
    ("paged", _BEAM6, CheckValues(0.0806, preempted=59, saving=0.6505)),
    ("oracle", _BEAM6, CheckValues(0.4291)),
)
"""Values of the original schedulers and block managers, where time and device were replaced."""


@dataclass(frozen=True, slots=True)
class CheckedValue:
    """A value beside the original's."""

    system: str
    load: str
    name: str
    original: float
    ours: float

    @property
    def within(self) -> bool:
        most = PREEMPTIONS_TOLERANCE if self.name == "preempted" else TOLERANCE * self.original
        return abs(self.ours - self.original) <= most


def check() -> list[CheckedValue]:
    """Every value that is known of the original."""
    return [value for system, load, original in VECTORS for value in _compared(system, load, original)]


def _compared(system: str, load: CheckLoad, original: CheckValues) -> list[CheckedValue]:
    ours = measure(system, load)
    return [
        CheckedValue(system, load.label, name, float(wanted), float(getattr(ours, name)))
        for name in CheckValues.__slots__
        if (wanted := getattr(original, name)) is not None
    ]


def main() -> int:
    """Exit status: 0, 1 where a value is too far off, 130 after Ctrl-C."""
    return run_command("sim.study.paged.check", _check)


def _check() -> int:
    values = check()
    table = make_table("beside the original", "system", "load", "value", "original", "ours", "off")
    for value in values:
        off = f"{value.ours / value.original - 1:+.1%}" if value.original else f"{value.ours:+g}"
        mark = "" if value.within else " !"
        table.add_row(value.system, value.load, value.name, f"{value.original:g}", f"{value.ours:.4g}", f"{off}{mark}")
    make_console().print(table)
    return int(not all(value.within for value in values))


if __name__ == "__main__":
    sys.exit(main())
