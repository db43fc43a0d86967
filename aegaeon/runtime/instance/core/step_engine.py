"""What computes a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from aegaeon.engine.attention.sequence_slice import SequenceSlice
from aegaeon.engine.sampling.sampling_state import SamplingState


class StepEngine(Protocol):
    """Runs models, and chooses the next tokens."""

    def step(
        self, model: str, slices: Sequence[SequenceSlice], sampling: Sequence[SamplingState]
    ) -> Sequence[int | None]:
        """Feed the slices to a model that is bound. Returns the next token of each slice that wants logits, whose
        ``sampling`` these are; None where there is none to choose.

        A step that raises has changed nothing but KV beyond what the slices' sequences count, and states.
        """
        ...
