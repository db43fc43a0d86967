"""What a member of a turn feeds in its next step."""

from __future__ import annotations

from dataclasses import dataclass

from aegaeon.runtime.instance.core.live_sequence import LiveSequence


@dataclass(frozen=True, slots=True)
class Feed:
    """Tokens ``[start, start + tokens)`` of a sequence go into the next step; ``last``: none is left to feed."""

    sequence: LiveSequence
    tokens: int
    prefill: bool

    @property
    def last(self) -> bool:
        return self.tokens == self.sequence.unfed_tokens
