"""The unit of scheduling: a request and the sequences that it is answered with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

Forks: TypeAlias = Sequence[tuple[int, int]]
"""(a sequence, the one whose past it takes over); nobody is in both places."""


@dataclass(slots=True, eq=False)
class SequenceGroup:
    """``sequences`` answers to one prompt, which always have the same length.

    ``forks``: of a beam search, (number of an output token, what it forks) with rising numbers; ``fork`` is the next.
    ``made_tokens`` counts outputs, as of the last time that the group was started or stopped.
    """

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    sequences: int = 1
    forks: Iterator[tuple[int, Forks]] | None = None
    fork: tuple[int, Forks] | None = None
    made_tokens: int = 0
    preemptions: int = 0
    finish_s: float | None = None

    @property
    def tokens(self) -> int:
        """Tokens of one sequence."""
        return self.prompt_tokens + self.made_tokens

    @property
    def normalized_latency_s(self) -> float:
        """Seconds per output token, from the arrival to the end."""
        assert self.finish_s is not None, "it has not ended"
        return (self.finish_s - self.arrival_s) / self.output_tokens
