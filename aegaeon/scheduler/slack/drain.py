"""How fast a queue drains, as observed: what tells an honest wait to one who comes now.

Does not know: what is queued, who serves it.
"""

from __future__ import annotations

_LATEST = 0.05  # what the latest gap counts in the running mean


class Drain:
    """A running mean of the time between two departures while somebody waits; times in seconds."""

    def __init__(self) -> None:
        self._gap_s: float | None = None
        self._since_s = 0.0

    def begin(self, now_s: float) -> None:
        """Somebody begins to wait and nobody else does: what was before does not count."""
        self._since_s = now_s

    def leave(self, now_s: float) -> None:
        """Somebody was served."""
        gap_s, self._since_s = now_s - self._since_s, now_s
        self._gap_s = gap_s if self._gap_s is None else self._gap_s + _LATEST * (gap_s - self._gap_s)

    def wait_s(self, ahead: int, now_s: float) -> float:
        """Until ``ahead`` have been served (Little's law). A gap that is longer than the mean counts while it lasts."""
        open_s = now_s - self._since_s
        return ahead * (open_s if self._gap_s is None else max(self._gap_s, _LATEST * open_s))
