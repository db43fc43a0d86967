"""The tokens of several requests, end to end: what is to be known of each is computed of all at once.

Does not know: requests beyond their targets, what is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from aegaeon.core.slo import Slo

Floats: TypeAlias = NDArray[np.float64]
Counts: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class TokenBatch:
    """``times_s`` [tokens]: when each came, absolute. ``elapsed_s``, ``due_s`` [tokens]: after its request's arrival.

    ``counts`` [requests]: tokens of each, at least one; ``firsts``, ``lasts`` [requests]: the indices of its first and
    its last one. ``next_due_s`` [requests]: when a token after the last one would be due, after arrival.
    """

    times_s: Floats
    elapsed_s: Floats
    due_s: Floats
    counts: Counts
    firsts: Counts
    lasts: Counts
    next_due_s: Floats

    @classmethod
    def of(
        cls, pieces: Sequence[Floats], counts: Sequence[int], arrivals_s: Sequence[float], slos: Sequence[Slo]
    ) -> TokenBatch:
        """``pieces``: token times, in any number of pieces; one count, arrival and target for each request."""
        times_s = np.concatenate(pieces)
        tokens = np.array(counts, dtype=np.int64)
        ends = tokens.cumsum()
        firsts = ends - tokens
        elapsed_s = times_s - np.repeat(np.array(arrivals_s), tokens)
        ttft_s, tpot_s = np.array([(slo.ttft_s, slo.tpot_s) for slo in slos]).T
        index = np.arange(len(times_s)) - np.repeat(firsts, tokens)
        due_s = np.repeat(ttft_s, tokens) + index * np.repeat(tpot_s, tokens)
        return cls(times_s, elapsed_s, due_s, tokens, firsts, ends - 1, ttft_s + tokens * tpot_s)
