"""When things happened in one turn of an instance."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from aegaeon.core.timeline import Phase, PhaseSpan

_COMPUTE = (Phase.PREFILL, Phase.DECODE)


@dataclass(frozen=True, slots=True)
class TurnTimes:
    """``token_times_s``: the end of each step that gave tokens, at least one; on the node's monotonic clock."""

    token_times_s: tuple[float, ...]
    spans: tuple[PhaseSpan, ...]

    @property
    def first_step_s(self) -> float:
        """When the turn's first step began."""
        return min(span.start_s for span in self.spans if span.phase in _COMPUTE)

    @property
    def prefill_s(self) -> float:
        """Time spent on prompts, from the start of the first chunk to the end of the last."""
        return sum(span.end_s - span.start_s for span in self.spans if span.phase is Phase.PREFILL)

    @property
    def decode_step_s(self) -> float:
        """Median time from token to token: what a step takes as clients see it, with all that is done around it."""
        gaps = [after - before for before, after in pairwise((self.first_step_s, *self.token_times_s))]
        return median(gaps[1:] or gaps)  # the first step of a turn finds cold caches
