"""Whether a process whose pulse the driver reads is stuck. Pure.

Time is counted by the driver's own looks: a gap between two of them counts no more than a look's due. So when the whole
machine stood still, or is so busy that the driver itself hardly runs, nobody is blamed for it.
"""

from __future__ import annotations

from aegaeon.runtime.wire.pulse_reading import PulseReading

# A piece of work may take so many times what it should: the machine may be busy with other things.
_SLOWNESS = 20.0
# Where nothing is known of it (a model's first step, a graph to capture, a kernel to compile): so many timeouts.
_UNKNOWN_TIMEOUTS = 60.0
_LOOKS_PER_TIMEOUT = 20.0
# Silence is told of from this share of the timeout on.
_TOLD_FROM = 0.5


def look_interval_s(timeout_s: float) -> float:
    """How often a pulse is to be looked at, and to beat."""
    return timeout_s / _LOOKS_PER_TIMEOUT


class Vigil:
    """The watch over one process; ``timeout_s`` is the longest silence that is allowed."""

    def __init__(self, timeout_s: float, now_s: float) -> None:
        self._timeout_s = timeout_s
        self._last: PulseReading | None = None
        self._looked_s = now_s
        self._silent_s = 0.0
        self._still_s = 0.0

    def look(self, reading: PulseReading, now_s: float) -> None:
        """Take note of what the pulse says now."""
        passed_s = min(now_s - self._looked_s, 2 * look_interval_s(self._timeout_s))
        last, self._last, self._looked_s = self._last, reading, now_s
        self._silent_s = self._silent_s + passed_s if last and last.beats == reading.beats else 0.0
        still = last is not None and last.passes == reading.passes and not reading.waiting
        self._still_s = self._still_s + passed_s if still else 0.0

    @property
    def stuck(self) -> bool:
        """Whether it has been silent or still for longer than it may."""
        return self._silent_s >= self._silence_limit_s or self._still_s >= self._still_limit_s

    @property
    def trouble(self) -> str:
        """What is wrong with it, if something is; the words stay the same while that goes on."""
        if self._silent_s >= self._silence_limit_s * _TOLD_FROM:
            return "gives no sign of life" if self._begun else "has not started yet"
        if self._still_s >= self._still_limit_s * _TOLD_FROM:
            return "is stuck in one piece of work"
        return ""

    @property
    def for_s(self) -> float:
        """How long that has been so, in seconds."""
        return max(self._silent_s, self._still_s)

    @property
    def _begun(self) -> bool:
        return self._last is not None and self._last.beats > 0

    @property
    def _silence_limit_s(self) -> float:
        """A process that is being started (a busy machine, a cold disk) says nothing for long."""
        return self._timeout_s if self._begun else self._timeout_s * _UNKNOWN_TIMEOUTS

    @property
    def _still_limit_s(self) -> float:
        expected_s = self._last.expected_s if self._last is not None else None
        if expected_s is None:
            return self._timeout_s * _UNKNOWN_TIMEOUTS
        return max(self._timeout_s, expected_s * _SLOWNESS)
