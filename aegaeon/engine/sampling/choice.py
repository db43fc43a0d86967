"""What is wanted of a row of logits, and what comes of it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aegaeon.engine.sampling.sampling_state import SamplingState


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token that was chosen, and the logarithm of the probability that the model gave it."""

    token_id: int
    logprob: float


@dataclass(frozen=True, slots=True)
class LikeliestTokens:
    """Wanted: as many tokens, but none that is forbidden."""

    count: int
    forbidden: Sequence[int] = ()


Candidates = tuple[ScoredToken, ...]
"""The likeliest tokens, the first one first. Equal ones are in no order."""

Wish = SamplingState | LikeliestTokens
Choice = int | ScoredToken | Candidates
