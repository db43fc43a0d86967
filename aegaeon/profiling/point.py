"""What can be measured of a model: the closed union of points, each with a name for the journal."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class PrefillPoint:
    """A prompt of ``tokens``, processed chunk by chunk."""

    tokens: int

    @property
    def name(self) -> str:
        return f"prefill {self.tokens}"


@dataclass(frozen=True, slots=True)
class DecodePoint:
    """One step of ``batch`` requests with ``context`` tokens each."""

    batch: int
    context: int

    @property
    def name(self) -> str:
        return f"decode {self.batch}x{self.context}"


@dataclass(frozen=True, slots=True)
class HandOverPoint:
    """From the last token of another model's turn to the first of this one's, less the step: weights are there."""

    @property
    def name(self) -> str:
        return "hand-over"


@dataclass(frozen=True, slots=True)
class SwitchPoint:
    """As a hand-over, but the weights are first brought in: from the host cache, or (``cold``) from disk."""

    cold: bool

    @property
    def name(self) -> str:
        return "switch from disk" if self.cold else "switch from host cache"


class Copied(StrEnum):
    """What is copied, and which way."""

    WEIGHTS_IN = "weights in"
    KV_IN = "KV in"
    KV_OUT = "KV out"


@dataclass(frozen=True, slots=True)
class CopyPoint:
    """A copy between host and device: in one piece as weights, or in the model's KV blocks."""

    what: Copied

    @property
    def name(self) -> str:
        return f"copy {self.what}"


Point = PrefillPoint | DecodePoint | HandOverPoint | SwitchPoint | CopyPoint
