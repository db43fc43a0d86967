"""The only wall clock.

CLOCK_MONOTONIC is one clock for all processes of a node, so times taken in one process may be compared in another.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Where time comes from."""

    def now_s(self) -> float: ...


class MonotonicClock:
    """The node's monotonic clock, in seconds since some fixed moment."""

    def now_s(self) -> float:
        return time.monotonic()
