"""What turns cost in a real pool beside its server, driver and clients, against what the profiles say; from its log.

A profile is measured with one instance that never rests. In a pool an instance is idle between turns, and on virtual
machines what comes after a pause is slower; and the other processes of the pool want their share of the cores.

Does not know: who ran the pool, what the ratios are for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from statistics import median

from aegaeon.core.command import StartTurn
from aegaeon.core.event import TurnEnded
from aegaeon.core.turn_timing import StepSums, TurnTiming
from aegaeon.latency.profile_book import ProfileEntry
from aegaeon.scheduler.log import LogEntry


@dataclass(frozen=True, slots=True)
class TurnCosts:
    """All steps of a log over what the profiles say of them, and what a turn takes beside its steps (median)."""

    prefill_ratio: float
    decode_ratio: float
    hand_over_s: float

    @classmethod
    def of(cls, log: Iterable[LogEntry], profiles: Mapping[str, ProfileEntry]) -> TurnCosts:
        """Raises ``ValueError`` where the log has no turn of each kind."""
        prefill, decode, beside_s = _Sums(), _Sums(), []
        for timing, seconds in _turns(log):
            profile = profiles[timing.model].profile
            if timing.decode is not None:
                decode.add(timing.decode, (profile.d0_s, profile.d1_s, profile.d2_s))
            if timing.prefill is not None:
                prefill.add(timing.prefill, (profile.p0_s, profile.p1_s, profile.p2_s))
            if timing.prefill is not None and timing.decode is None:  # the first decode step of a turn is not timed
                beside_s.append(seconds - timing.prefill.seconds)
        if not (prefill.taken_s and decode.taken_s and beside_s):
            raise ValueError("the log has no timed turn of each kind")
        return cls(prefill.ratio, decode.ratio, max(0.0, median(beside_s)))


@dataclass(slots=True)
class _Sums:
    """Time that steps took, and that the profile says they take."""

    taken_s: float = 0.0
    told_s: float = 0.0

    def add(self, sums: StepSums, coefficients_s: tuple[float, float, float]) -> None:
        self.taken_s += sums.seconds
        self.told_s += sum(c * f for c, f in zip(coefficients_s, (sums.steps, sums.first, sums.second), strict=True))

    @property
    def ratio(self) -> float:
        return self.taken_s / self.told_s


def _turns(log: Iterable[LogEntry]) -> Iterator[tuple[TurnTiming, float]]:
    """Timed turns, and the time from each one's command to its end."""
    started: dict[tuple[str, int], float] = {}
    for entry in log:
        event = entry.event
        if isinstance(event, TurnEnded) and event.timing is not None:
            start_s = started.pop((event.instance_id, event.turn_id), None)
            if start_s is not None:
                yield event.timing, entry.now_s - start_s
        for command in entry.commands:
            if isinstance(command, StartTurn):
                started[command.instance_id, command.turn_id] = entry.now_s
