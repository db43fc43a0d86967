"""KV attended where it lies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from aegaeon.core.kv_shape import KvShape
from aegaeon.engine.attention.kv_arena import KvArena
from aegaeon.runtime.instance.core.live_sequence import LiveSequence


class InPlaceKv:
    """KV attended where it lies, in the slab cache: nothing moves (CPU). So do states: one that was left in the middle
    of a turn, or of a step, is of other tokens than the driver knows, and what follows the last whole block is computed
    again. Shapes by model name."""

    def __init__(self, slabs: KvArena, shapes: Mapping[str, KvShape]) -> None:
        self._slabs = slabs
        self._shapes = shapes

    def arena(self, model: str) -> KvArena:
        return self._slabs

    def fetch(self, model: str, sequence: LiveSequence) -> bool:
        shape = self._shapes[model]
        if sequence.branch is not None:
            own = sequence.blocks[sequence.kv_tokens // shape.block_tokens]
            self._slabs.copy_block(shape, sequence.branch.block, own)
            sequence.branched_off()
            sequence.all_saved()
        if shape.states:
            sequence.kv_tokens = self._slabs.usable_tokens(shape, sequence.blocks, sequence.kv_tokens)
        return True

    def blocks(self, sequence: LiveSequence) -> Sequence[int]:
        return sequence.blocks

    def copy_blocks(self, model: str, sequence: LiveSequence, copies: Iterable[tuple[int, int]]) -> None:
        for source, target in copies:
            self._slabs.copy_block(self._shapes[model], sequence.blocks[source], sequence.blocks[target])

    def write_back(self, sequences: Iterable[LiveSequence]) -> None:
        self.save(sequences)

    def save(self, sequences: Iterable[LiveSequence]) -> None:
        for sequence in sequences:
            sequence.all_saved()

    def saved(self, sequence: LiveSequence) -> bool:
        return sequence.saved

    def evict(self, request_id: str) -> None:
        return

    def close(self) -> None:
        return
