"""How long to wait before something that failed is tried again. Pure."""

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
