"""What a member of a turn feeds in its next step."""

from __future__ import annotations

from dataclasses import dataclass

from aegaeon.runtime.instance.core.live_sequence import LiveSequence


@dataclass(frozen=True, slots=True)
class Feed:
    """The next ``tokens`` tokens of a sequence go into the next step; ``last``: something is chosen then."""

    sequence: LiveSequence
    tokens: int
    prefill: bool

    @property
    def last(self) -> bool:
        return self.sequence.ends_with(self.tokens)
