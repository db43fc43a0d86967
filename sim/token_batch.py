"""The tokens of several requests, end to end: what is to be known of each is computed of all at once.

Does not know: requests, what is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Counts: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class TokenBatch:
    """``times_s`` [tokens]: when each came, absolute; ``elapsed_s`` [tokens]: after its request's arrival.

    ``counts`` [requests]: tokens of each, at least one; ``firsts`` [requests]: the index of its first one.
    """

    times_s: Floats
    elapsed_s: Floats
    counts: Counts
    firsts: Counts

    @classmethod
    def of(cls, pieces: Sequence[Floats], counts: Sequence[int], arrivals_s: Sequence[float]) -> TokenBatch:
        """``pieces``: token times, in any number of pieces; one count and arrival for each request."""
        times_s = np.concatenate(pieces)
        tokens = np.array(counts, dtype=np.int64)
        elapsed_s = times_s - np.repeat(np.array(arrivals_s), tokens)
        return cls(times_s, elapsed_s, tokens, tokens.cumsum() - tokens)

    @property
    def lasts(self) -> Counts:
        """The index of each request's last token [requests]."""
        return self.firsts + self.counts - 1
