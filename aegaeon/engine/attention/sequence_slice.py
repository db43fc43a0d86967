"""What one sequence feeds in a step. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SequenceSlice:
    """Tokens to feed at positions ``start``, ``start + 1``, ... of a sequence whose KV before ``start`` is in place.

    ``blocks``: the sequence's block table from position 0, as byte offsets in the KV arena; it may be longer than
    needed. ``wants_logits``: whether the next token is to be chosen, that is, this is not the middle of a prompt.
    """

    token_ids: Sequence[int]
    start: int
    blocks: Sequence[int]
    wants_logits: bool = True

    def __post_init__(self) -> None:
        if not self.token_ids or self.start < 0:
            raise ValueError("a slice has at least one token, at a position that is not negative")

    @property
    def goes_on(self) -> bool:
        """Whether it is one token after others."""
        return self.start > 0 and len(self.token_ids) == 1

    @property
    def end(self) -> int:
        """The position after the last token."""
        return self.start + len(self.token_ids)
