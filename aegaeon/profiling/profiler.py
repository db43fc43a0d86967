"""Measures models in rounds over all their points, so that a disturbance hits no point and no model alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from aegaeon.engine.prepared.prepared_model import PreparedModel
from aegaeon.profiling.grid import GridLimits, make_grid
from aegaeon.profiling.journal import Journal
from aegaeon.profiling.measure import measure, warm_up
from aegaeon.profiling.point import DecodePoint, Point, PrefillPoint, SwitchPoint
from aegaeon.profiling.probe import Probe, ProbeOptions

QUICK_ROUNDS, ROUNDS = 2, 5
_QUICK_POINT_S, _POINT_S = 1.0, 20.0


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured. ``point_s``: what takes longer is the largest of its kind that is measured."""

    quick: bool
    rounds: int
    point_s: float

    @classmethod
    def of(cls, quick: bool) -> Effort:
        """``quick``: under a minute for a tiny model."""
        return cls(True, QUICK_ROUNDS, _QUICK_POINT_S) if quick else cls(False, ROUNDS, _POINT_S)

    def rounds_of(self, point: Point) -> int:
        """How often a point is measured: in a hurry, nothing is read from disk twice."""
        return 1 if self.quick and point == SwitchPoint(cold=True) else self.rounds


Progress = Callable[[int, int, str], None]
"""(measurements done, of how many, what is being measured)."""


def subject_of(model: PreparedModel, options: ProbeOptions) -> dict[str, Any]:
    """What measurements are of: they are gone on with only while all of this is the same."""
    return {
        "model": model.spec.name,
        "folder": str(model.config.path.resolve()),
        "weight_bytes": model.spec.weight_bytes,
        "dtype": model.facts.dtype,
        "device": options.target.description,
        "threads": options.target.threads,
        "chunk_tokens": options.chunk_tokens,
        "torch": torch.__version__,
    }


class ModelProfiler:
    """One model's points and what was measured of them so far. ``other``: whose turns come before in a hand-over."""

    def __init__(self, model: str, other: str, limits: GridLimits, effort: Effort, journal: Journal) -> None:
        self.model = model
        self.journal = journal
        self._other = other
        self._effort = effort
        self._grid = make_grid(limits, quick=effort.quick)
        self._warm = False

    @property
    def points(self) -> tuple[Point, ...]:
        """The grid, without points that are larger than one that took too long."""
        slow = [point for point in self._grid if (self.journal.seconds(point) or 0.0) > self._effort.point_s]
        return tuple(point for point in self._grid if not any(_larger(point, other) for other in slow))

    @property
    def done(self) -> int:
        """Measurements in the journal."""
        return sum((point, turn) in self.journal for point, turn in self._measurements())

    @property
    def total(self) -> int:
        """Measurements there are to be."""
        return len(self._measurements())

    def _measurements(self) -> list[tuple[Point, int]]:
        return [(point, turn) for point in self.points for turn in range(self._effort.rounds_of(point))]

    def run_round(self, probe: Probe, turn: int, tell: Callable[[str], None]) -> None:
        """Measure each point that is not in the journal for this round; ``tell`` hears of each before."""
        for point in _order(self._grid, turn):
            if (point, turn) in self.journal or (point, turn) not in self._measurements():
                continue
            if not self._warm:
                warm_up(probe, self.model)
                self._warm = True
            tell(f"{self.model}: {point.name}")
            self.journal.add(point, turn, measure(probe, self.model, self._other, point))


def run_rounds(probe: Probe, models: Sequence[ModelProfiler], effort: Effort, progress: Progress) -> None:
    """All rounds of all models, round by round. Raises ``ProfilingError`` when the instance fails."""

    def tell(text: str) -> None:
        progress(sum(model.done for model in models), sum(model.total for model in models), text)

    for turn in range(effort.rounds):
        for model in models:
            model.run_round(probe, turn, tell)


def _order(points: Sequence[Point], turn: int) -> Sequence[Point]:
    """The first round goes from small to large, so that what takes too long is found out; others are shuffled."""
    if turn == 0:
        return points
    return random.Random(turn).sample(points, len(points))


def _larger(point: Point, other: Point) -> bool:
    match point, other:
        case PrefillPoint(), PrefillPoint():
            return point.tokens > other.tokens
        case DecodePoint(), DecodePoint():
            return point != other and point.batch >= other.batch and point.context >= other.context
        case _:
            return False
