"""Service-level objectives of a request."""

from __future__ import annotations

import math
from dataclasses import dataclass

# What clients and configurations may ask for: beyond it a target means nothing.
LEAST_TARGET_S = 1e-3
MOST_TARGET_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Slo:
    """Latency targets: time to first token, and time per output token after it.

    Token k (k = 0, 1, ...) of a request that arrived at ``a`` is due at ``a + ttft_s + k * tpot_s``
    (Aegaeon, SOSP'25, section 2).
    """

    ttft_s: float = 10.0
    tpot_s: float = 0.1

    def __post_init__(self) -> None:
        if not (0 < self.ttft_s < math.inf and 0 < self.tpot_s < math.inf):
            raise ValueError(f"SLO targets must be positive, and finite: ttft_s={self.ttft_s}, tpot_s={self.tpot_s}")

    def due_s(self, arrival_s: float, token_index: int) -> float:
        """When token ``token_index`` (0 = first) of a request that arrived at ``arrival_s`` is due."""
        return arrival_s + self.ttft_s + token_index * self.tpot_s

    def scaled(self, factor: float) -> Slo:
        """The targets, both multiplied by ``factor``."""
        return Slo(self.ttft_s * factor, self.tpot_s * factor)
