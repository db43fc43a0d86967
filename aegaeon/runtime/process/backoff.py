"""How long something that failed or ended waits before it is tried again, and when that makes no sense. Pure.

What ran well is replaced at once. What dies before it has done anything dies again, most likely: the pauses grow, so
that a broken installation or a full GPU is not a busy loop.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pauses:
    """Each failure in a row doubles the pause, from ``first_s`` up to ``most_s``; the first ``free`` cost nothing."""

    first_s: float
    most_s: float
    free: int = 0

    def after(self, failures: int) -> float:
        """The pause after so many failures in a row (from 1 on), in seconds."""
        doublings = failures - 1 - self.free
        if doublings < 0:
            return 0.0
        return min(self.most_s, self.first_s * 2.0 ** min(doublings, 64))


# A service's own processes: its pool, its server, its drivers.
PROCESS_PAUSES, PROCESS_LIMIT = Pauses(0.5, 30.0), 7
# Instances and those that wait to be one. A single death proves nothing: the kernel or an operator may have killed it.
INSTANCE_PAUSES = Pauses(1.0, 60.0, free=1)


def ran_well(up_s: float | None, now_s: float, well_after_s: float = 60.0) -> bool:
    """Whether what came up at ``up_s`` (None: never) has been up for so long that its next end counts as a first."""
    return up_s is not None and now_s - up_s >= well_after_s


@dataclass(slots=True)
class Backoff:
    """Ends in a row, none of which was preceded by a good life; after ``limit`` of them there is no next start.

    What a good life is, its owner says. The time to start is no part of it: what dies in every start must not look as
    if it had lived.
    """

    pauses: Pauses
    limit: int | None = None
    ends: int = 0

    def pause_s(self, ran_well: bool) -> float:
        """It has ended; the pause before the next start, in seconds."""
        self.ends = 1 if ran_well else self.ends + 1
        return self.pauses.after(self.ends)

    @property
    def hopeless(self) -> bool:
        """Whether it has ended too often."""
        return self.limit is not None and self.ends >= self.limit
