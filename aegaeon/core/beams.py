"""How far a search by beams has come, as plain data: what an instance needs to go on with it."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Beam:
    """An output that goes on: its tokens and the sum of their log probabilities.

    ``places``: in the request's block table, of the blocks that follow on the whole blocks of the prompt, in the order
    of tokens; ``kv_tokens``: of prompt and output together, of which there is KV.
    """

    token_ids: tuple[int, ...] = ()
    score: float = 0.0
    places: tuple[int, ...] = ()
    kv_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """An output that has ended, and what it is worth."""

    token_ids: tuple[int, ...]
    score: float


@dataclass(frozen=True, slots=True)
class BeamState:
    """All beams, which are of one length, and the outputs that have ended; the best ones first."""

    beams: tuple[Beam, ...]
    finished: tuple[Hypothesis, ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens of each beam."""
        return len(self.beams[0].token_ids)

    def without_kv(self) -> BeamState:
        """The same, whose KV beyond the prompt's is lost."""
        return replace(self, beams=tuple(replace(beam, places=(), kv_tokens=0) for beam in self.beams))
