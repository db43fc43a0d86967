"""What a driver reads of a process's pulse. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PulseReading:
    """``expected_s``: None where nothing is known of the present work. ``pid`` is 0 until the process has begun."""

    pid: int
    beats: int
    passes: int
    waiting: bool
    expected_s: float | None
