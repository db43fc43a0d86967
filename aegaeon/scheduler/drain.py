"""How fast a queue drains, as observed: what tells an honest wait to one who comes now."""

from __future__ import annotations

_LATEST = 0.05  # what the latest gap counts in the running mean, once there were as many as that takes


class Drain:
    """A running mean of the time between two departures while somebody waits; times in seconds.

    The first ones count as much as each other, so that one request that an idle pool served at once says little.
    """

    def __init__(self) -> None:
        self._gap_s = 0.0
        self._departures = 0
        self._since_s = 0.0

    def begin(self, now_s: float) -> None:
        """Somebody begins to wait and nobody else does: what was before does not count."""
        self._since_s = now_s

    def leave(self, now_s: float) -> None:
        """Somebody was served."""
        gap_s, self._since_s = now_s - self._since_s, now_s
        self._gap_s += self._latest * (gap_s - self._gap_s)
        self._departures += 1

    def wait_s(self, ahead: int, now_s: float) -> float:
        """Time until ``ahead`` are served (Little's law). A gap that is longer than the mean counts while it lasts."""
        return ahead * max(self._gap_s, self._latest * (now_s - self._since_s))

    @property
    def _latest(self) -> float:
        """What the next gap counts."""
        return max(_LATEST, 1 / (self._departures + 1))
