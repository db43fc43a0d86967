"""A request's output, as those see it who pass it on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from aegaeon.core.generation import FinishReason, GenerationError
from aegaeon.core.timeline import PhaseSpan
from aegaeon.runtime.wire.messages import BeamOutput


class OutputStream(Protocol):
    """Takes the tokens of one request. ``done``: it is over. ``request_id`` is what drivers know it by: ``first_id``,
    until one is lost."""

    request_id: str
    first_id: str
    model: str
    cached_tokens: int
    token_ids: list[int]
    spans: list[PhaseSpan]
    done: bool

    def accept(self) -> None:
        """A driver has taken the request."""
        ...

    def take_token(self, index: int, token_id: int, time_s: float, logprob: float = 0.0) -> None:
        """Token ``index`` of the output; one that is known already is ignored, one that is early waits."""
        ...

    def finish(self, reason: FinishReason, generated_tokens: int) -> None:
        """The output has ``generated_tokens`` tokens, all of which are here or on their way."""
        ...

    def finish_search(self, outputs: Sequence[BeamOutput]) -> None:
        """These are the outputs of a search by beams, whole."""
        ...

    def rewind(self) -> tuple[int, ...]:
        """The tokens that the client has: the request goes on from them, wherever it does, and from nothing else."""
        ...

    def fail(self, error: GenerationError) -> None:
        """The request is over without success."""
        ...
