"""How long to wait before something that ended is started again, and when to stop trying."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Backoff:
    """Growing pauses between starts. What lives for ``healthy_s`` has recovered: its next end counts as a first one.

    After ``limit`` ends in a row none of which was preceded by a healthy life, there is no next start.
    """

    first_s: float = 0.5
    longest_s: float = 30.0
    healthy_s: float = 60.0
    limit: int = 7
    ends: int = 0

    def pause_s(self, lived_s: float) -> float | None:
        """The pause after an end, given how long the life before it was; None: give up."""
        self.ends = 1 if lived_s >= self.healthy_s else self.ends + 1
        if self.ends >= self.limit:
            return None
        return float(min(self.longest_s, self.first_s * 2 ** (self.ends - 1)))
