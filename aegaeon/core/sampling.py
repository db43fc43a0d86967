"""How the next token of a request is chosen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


class SamplingError(ValueError):
    """A sampling value out of range; ``field`` names it as the OpenAI API does."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


def _require(field: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise SamplingError(field, f"must be between {low:g} and {high:g}, got {value!r}")


MAX_BEAMS = 16
MAX_LENGTH_PENALTY = 4.0
"""And the least one, negated: beyond it worths of long outputs are no float32 numbers."""


@dataclass(frozen=True, slots=True)
class BeamParams:
    """A search for likely outputs by ``width`` beams, of which the best ones are ``returned``; in the words of
    Transformers' ``generate``."""

    width: int
    returned: int
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False

    def __post_init__(self) -> None:
        if not 2 <= self.width <= MAX_BEAMS:
            raise SamplingError(
                "best_of", f"a beam search has 2 to {MAX_BEAMS} beams (best_of, or n), got {self.width}"
            )
        if not 1 <= self.returned <= self.width:
            raise SamplingError("best_of", f"must be at least n, got best_of {self.width} and n {self.returned}")
        _require("length_penalty", self.length_penalty, -MAX_LENGTH_PENALTY, MAX_LENGTH_PENALTY)


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling of one request; ranges as in the OpenAI API, ``top_k``, ``min_p``, ``repetition_penalty`` as in vLLM's.

    ``temperature`` 0 is greedy. ``top_k`` 0 means no limit. ``seed`` makes the request reproducible whatever else is in
    the batch. ``stop`` strings end the output (and are not part of it); ``stop_token_ids`` end it like EOS. Where it is
    ``scored`` the log probabilities of its tokens are told, too. With ``beams`` nothing is sampled: of the rest only
    the limits and ends of the output count.
    """

    max_new_tokens: int = 16
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_new_tokens: int = 0
    scored: bool = False
    beams: BeamParams | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise SamplingError("max_tokens", f"must be at least 1, got {self.max_new_tokens}")
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise SamplingError("min_tokens", f"must be between 0 and max_tokens, got {self.min_new_tokens}")
        _require("temperature", self.temperature, 0.0, 2.0)
        _require("top_p", self.top_p, 0.0, 1.0)
        if self.top_p == 0.0:
            raise SamplingError("top_p", "must be greater than 0; use temperature 0 for greedy decoding")
        _require("min_p", self.min_p, 0.0, 1.0)
        _require("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _require("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _require("repetition_penalty", self.repetition_penalty, 0.01, 100.0)
        if self.top_k < 0:
            raise SamplingError("top_k", f"must be 0 (no limit) or more, got {self.top_k}")
        if self.seed is not None and not -(2**63) <= self.seed < 2**63:
            raise SamplingError("seed", "must fit in 64 bits")
        if any(not text for text in self.stop):
            raise SamplingError("stop", "stop strings must not be empty")

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken."""
        return self.temperature == 0.0
