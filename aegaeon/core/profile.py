"""Latency of a model on a device, as a linear model (Vidur, DistServe; Aegaeon section 4 of the paper)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LatencyProfile:
    """Seconds of a prefill and of a decode step.

    prefill(batch) = p0 + p1 * sum(len) + p2 * sum(len^2);  decode(batch) = d0 + d1 * sum(context) + d2 * batch size.
    """

    p0_s: float
    p1_s: float
    p2_s: float
    d0_s: float
    d1_s: float
    d2_s: float

    def prefill_s(self, lengths: Iterable[int]) -> float:
        """Seconds to process prompts of these lengths (tokens) together."""
        lengths = tuple(lengths)
        return self.p0_s + self.p1_s * sum(lengths) + self.p2_s * sum(n * n for n in lengths)

    def decode_step_s(self, context_tokens: int, batch_size: int) -> float:
        """Seconds of one decode step of ``batch_size`` requests whose contexts sum to ``context_tokens``."""
        return self.d0_s + self.d1_s * context_tokens + self.d2_s * batch_size
