"""Where an instance attends KV: in place in the node's slab cache, or in device pages.

A ``KvPlace`` answers three questions about a sequence: may its blocks be read now, where are they, and is what a turn
wrote safe in the slab cache. Nothing that it does waits for a copy but ``evict``.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Seq
from typing import Protocol

from aegaeon.core.kv_shape import KvShape
from aegaeon.engine.attention.kv_arena import KvArena
from aegaeon.runtime.instance.sequence import Sequence


class KvPlace(Protocol):
    """The KV of sequences, as the engine reads and writes it."""

    def arena(self, model: str) -> KvArena:
        """The memory that a model's block tables point into."""
        ...

    def fetch(self, model: str, sequence: Sequence) -> bool:
        """Bring the sequence's KV here if it is not; True once it may be read."""
        ...

    def blocks(self, sequence: Sequence) -> Seq[int]:
        """Its block table in ``arena``; covers as many tokens as may be written now."""
        ...

    def write_back(self, sequences: Iterable[Sequence]) -> None:
        """Begin to bring blocks that have been filled to the slab cache; steps may go on."""
        ...

    def save(self, sequences: Iterable[Sequence]) -> None:
        """Begin to bring everything written so far there; no step of these until they are ``saved``."""
        ...

    def saved(self, sequence: Sequence) -> bool:
        """Whether everything written so far is safe in the slab cache; keeps ``saved_tokens`` up to date."""
        ...

    def evict(self, request_id: str) -> None:
        """Drop the device copy; what was not saved is lost. Unknown requests are ignored.

        No copy of it is under way afterwards, so its blocks, here and in the slab cache, may be another's.
        """
        ...

    def close(self) -> None: ...


class InPlaceKv:
    """KV attended where it lies, in the slab cache: nothing moves (CPU)."""

    def __init__(self, slabs: KvArena) -> None:
        self._slabs = slabs

    def arena(self, model: str) -> KvArena:
        return self._slabs

    def fetch(self, model: str, sequence: Sequence) -> bool:
        return True

    def blocks(self, sequence: Sequence) -> Seq[int]:
        return sequence.blocks

    def write_back(self, sequences: Iterable[Sequence]) -> None:
        self.save(sequences)

    def save(self, sequences: Iterable[Sequence]) -> None:
        for sequence in sequences:
            sequence.saved_tokens = sequence.kv_tokens

    def saved(self, sequence: Sequence) -> bool:
        return sequence.saved_tokens == sequence.kv_tokens

    def evict(self, request_id: str) -> None:
        return

    def close(self) -> None:
        return


def room_tokens(shape: KvShape, blocks: Seq[int]) -> int:
    """Tokens that a block table can hold."""
    return len(blocks) * shape.block_tokens
