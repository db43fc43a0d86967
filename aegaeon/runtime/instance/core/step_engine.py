"""What computes a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from aegaeon.engine.attention.sequence_slice import SequenceSlice
from aegaeon.engine.sampling.choice import Choice, Wish


class StepEngine(Protocol):
    """Runs models, and chooses the next tokens."""

    def step(self, model: str, slices: Sequence[SequenceSlice], wishes: Sequence[Wish]) -> Sequence[Choice | None]:
        """Feed the slices to a model that is bound. Returns what comes of each slice that wants logits, by its wish;
        None where there is nothing to choose.

        A step that raises has changed nothing but KV beyond what the slices' sequences count, and states.
        """
        ...
