"""How much of what requests were owed has come late, of one model or of all.

A request that is late misses the tokens that are due meanwhile, so the share of the time under way in which requests
were late is about the share of tokens that were.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_MEMORY_S = 60.0  # time constant: what was longer ago fades
_CREDIT_S = 5.0  # request-seconds on time that are taken for granted, so that the first to be late do not decide


@dataclass(slots=True)
class Account:
    """Request-seconds ``late_s`` of ``live_s`` under way, as of ``noted_s``."""

    late_s: float = 0.0
    live_s: float = 0.0
    noted_s: float = 0.0

    def add(self, late_s: float, live_s: float, now_s: float) -> None:
        """So many more request-seconds until now."""
        kept = math.exp((self.noted_s - now_s) / _MEMORY_S)
        self.late_s = self.late_s * kept + late_s
        self.live_s = self.live_s * kept + live_s
        self.noted_s = now_s

    @property
    def missed_share(self) -> float:
        """Between 0 and 1."""
        return self.late_s / (self.live_s + _CREDIT_S)
