"""Sums up what the steps of a turn take, by kind."""

from __future__ import annotations

from collections.abc import Sequence

from aegaeon.core.turn_timing import StepSums, TurnTiming
from aegaeon.runtime.instance.core.feed import Feed


class TurnClock:
    """Mixed steps count for neither kind, and so does a first step that decodes: its cold caches are the hand-over."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._stepped = False
        self._prefill: list[tuple[int, int, float]] = []
        self._decode: list[tuple[int, int, float]] = []

    def add(self, feeds: Sequence[Feed], seconds: float) -> None:
        """A step took that long; the sequences' KV holds what was fed."""
        first, self._stepped = not self._stepped, True
        if all(feed.prefill for feed in feeds):
            tokens = sum(feed.tokens for feed in feeds)
            ends = [(feed.sequence.attended_tokens, feed.tokens) for feed in feeds]
            squares = sum(end**2 - (end - fed) ** 2 for end, fed in ends)
            self._prefill.append((tokens, squares, seconds))
        elif not (first or any(feed.prefill for feed in feeds)):
            sequences = [feed.sequence for feed in feeds]
            attended, rows = sum(one.attended_tokens for one in sequences), sum(one.rows for one in sequences)
            self._decode.append((attended, rows, seconds))

    @property
    def timing(self) -> TurnTiming:
        """So far."""
        return TurnTiming(self._model, _sums(self._prefill), _sums(self._decode))


def _sums(steps: Sequence[tuple[int, int, float]]) -> StepSums | None:
    seconds = sum(step[2] for step in steps)
    if seconds <= 0:
        return None
    return StepSums(len(steps), sum(step[0] for step in steps), sum(step[1] for step in steps), seconds)
