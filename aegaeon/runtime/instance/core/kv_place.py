"""Where an instance attends KV: in place in the node's slab cache, or in device pages.

A ``KvPlace`` answers three questions about a sequence: may its blocks be read now, where are they, and is what a turn
wrote safe in the slab cache. Nothing that it does waits for a copy but ``evict``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from aegaeon.core.kv_shape import KvShape
from aegaeon.runtime.instance.core.live_sequence import LiveSequence


class KvPlace(Protocol):
    """The KV of sequences, as turns read and write it."""

    def fetch(self, model: str, sequence: LiveSequence) -> bool:
        """Bring the sequence's KV here if it is not; True once it may be read."""
        ...

    def blocks(self, sequence: LiveSequence) -> Sequence[int]:
        """The sequence's block table in the memory that steps write to; covers as many tokens as may be written now."""
        ...

    def copy_blocks(self, model: str, sequence: LiveSequence, copies: Iterable[tuple[int, int]]) -> None:
        """Copy blocks of a sequence that are here to others of its own: by their places in its table, after all steps
        so far and before all that follow."""
        ...

    def write_back(self, sequences: Iterable[LiveSequence]) -> None:
        """Begin to bring blocks that have been filled to the slab cache; steps may go on."""
        ...

    def save(self, sequences: Iterable[LiveSequence]) -> None:
        """Begin to bring everything written so far there; no step of these until they are ``saved``."""
        ...

    def saved(self, sequence: LiveSequence) -> bool:
        """Whether everything written so far is safe in the slab cache; keeps ``saved_tokens`` up to date."""
        ...

    def evict(self, request_id: str) -> None:
        """Drop the device copy; what was not saved is lost. Unknown requests are ignored.

        No copy of it is under way afterwards, so its blocks, here and in the slab cache, may be another's.
        """
        ...

    def close(self) -> None: ...


def room_tokens(shape: KvShape, blocks: Sequence[int]) -> int:
    """Tokens that a block table can hold."""
    return len(blocks) * shape.block_tokens
