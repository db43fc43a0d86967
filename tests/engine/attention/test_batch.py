"""Packing slices, and finding rows in an arena."""

from __future__ import annotations

import pytest
import torch

from aegaeon.core.kv_shape import KvShape, LayerKv
from aegaeon.engine.attention.batch import StepBatch
from aegaeon.engine.attention.kv_arena import KvArena
from aegaeon.engine.attention.sequence_slice import SequenceSlice


def test_rows_positions_and_slots() -> None:
    batch = StepBatch.pack([SequenceSlice([7, 8, 9], 3, [100, 200]), SequenceSlice([5], 4, [300, 400])], block_tokens=4)
    assert batch.token_ids.tolist() == [[5, 7, 8, 9]]  # decodes come first
    assert batch.positions.tolist() == [[4, 3, 4, 5]]
    assert batch.token_blocks.tolist() == [400, 100, 200, 200]
    assert batch.token_slots.tolist() == [0, 3, 0, 1]
    assert batch.logit_rows.tolist() == [3, 0]  # in the slices' order


def test_slices_without_logits() -> None:
    batch = StepBatch.pack([SequenceSlice([1, 2], 0, [0], wants_logits=False), SequenceSlice([3], 0, [9])], 4)
    assert batch.logit_rows.tolist() == [0]


@pytest.mark.parametrize(
    ("start", "tokens", "fresh"),
    [(0, 1, [10]), (0, 4, []), (0, 5, [20]), (3, 1, []), (4, 1, [20]), (5, 1, []), (2, 7, [30]), (4, 4, [])],
)
def test_fresh_blocks(start: int, tokens: int, fresh: list[int]) -> None:
    """Blocks of four tokens that are begun and not filled."""
    assert list(StepBatch.pack([SequenceSlice([0] * tokens, start, [10, 20, 30])], 4).fresh_blocks) == fresh


def test_bad_slices_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one slice"):
        StepBatch.pack([], 16)
    with pytest.raises(ValueError, match="1 blocks of 16 tokens do not hold positions up to 16"):
        StepBatch.pack([SequenceSlice([1], 16, [0])], 16)
    with pytest.raises(ValueError, match="at least one token"):
        SequenceSlice([], 0, [0])
    with pytest.raises(ValueError, match="not negative"):
        SequenceSlice([1], -1, [0])


def test_blocks_lie_where_their_offset_says() -> None:
    """Rows written through a view are found at the documented bytes, in slabs of an odd size."""
    shape = KvShape((LayerKv(2, 8, 4), LayerKv(1, 4, 4)), element_bytes=4, block_tokens=4)
    slab_bytes = 2 * shape.block_bytes + 12
    memory = torch.zeros(3 * slab_bytes, dtype=torch.uint8)
    view = KvArena(memory, slab_bytes).view(shape, torch.float32)
    offset = 2 * slab_bytes + shape.block_bytes
    block, slot = torch.tensor([offset // view.unit_bytes]), torch.tensor([2])
    states = torch.arange(1.0, 9.0).view(1, 2, 4)
    view.values[0].scatter(view.values[0].token_index(block, slot), states)
    elements = memory[offset : offset + shape.block_bytes].view(torch.float32)
    values = elements[2 * 4 * 8 : 2 * 4 * 8 + 2 * 4 * 4].view(2, 4, 4)  # after the keys: [heads, tokens, size]
    assert torch.equal(values[:, 2], states[0])
    assert memory.count_nonzero() == elements.view(torch.uint8).count_nonzero()
    view.clear(offset)
    assert memory.count_nonzero() == 0


def test_arenas_that_do_not_fit_are_refused() -> None:
    shape = KvShape((LayerKv(1, 8, 8),), element_bytes=2)
    with pytest.raises(ValueError, match="does not fit a shape of 2-byte elements"):
        KvArena(torch.zeros(1024, dtype=torch.uint8), 512).view(shape, torch.float32)
    with pytest.raises(ValueError, match="not aligned"):
        KvArena(torch.zeros(1024, dtype=torch.uint8), 511).view(shape, torch.bfloat16)
    with pytest.raises(ValueError, match="one-dimensional contiguous tensor of bytes"):
        KvArena(torch.zeros(8, 8), 8)
    with pytest.raises(ValueError, match="positive size"):
        KvArena(torch.zeros(8, dtype=torch.uint8), 0)
