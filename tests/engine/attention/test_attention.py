"""Paged attention against a few lines of plain arithmetic, on batches that mix everything."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from aegaeon.core.kv_shape import KvShape, LayerKv
from aegaeon.engine.attention.attention import AttentionCall, Reach
from aegaeon.engine.attention.batch import StepBatch
from aegaeon.engine.attention.kv_arena import KvArena
from aegaeon.engine.attention.paged_step import PagedStep
from aegaeon.engine.attention.sequence_slice import SequenceSlice
from aegaeon.engine.attention.workspace import Workspace
from tests.engine.greedy import POISON, blocks_of

# (context before this step, tokens fed): decodes of very different lengths, chunks within, across and beyond tiles.
SEQUENCES = [
    (0, 1),
    (1, 1),
    (15, 1),
    (16, 1),
    (17, 1),
    (300, 1),
    (301, 1),
    (0, 5),
    (9, 30),
    (100, 150),
    (0, 64),
    (33, 65),
]

REACHES = {
    "full": Reach(),
    "window": Reach(window_tokens=24),
    "window-1": Reach(window_tokens=1),
    "wide-window": Reach(window_tokens=4096),
    "chunk": Reach(chunk_tokens=40),
}
LAYERS = {
    "one-head": (1, LayerKv(1, 16, 16)),
    "grouped": (6, LayerKv(2, 16, 16)),
    "each-its-own": (4, LayerKv(4, 24, 24)),
    "wide-keys": (4, LayerKv(4, 24, 16)),
}


def naive(query: Tensor, keys: Tensor, values: Tensor, first_position: int, call: AttentionCall) -> Tensor:
    """Attention of one sequence: query ``[T, heads, size]``, all its keys and values ``[L, kv_heads, size]``."""
    output = torch.zeros(query.shape[0], query.shape[1], values.shape[2], dtype=torch.float64)
    group = query.shape[1] // keys.shape[1]
    for row in range(query.shape[0]):
        position = first_position + row
        seen = slice(call.reach.first(position), position + 1)
        for head in range(query.shape[1]):
            scores = keys[seen, head // group].double() @ query[row, head].double() * call.scaling
            if call.softcap is not None:
                scores = call.softcap * torch.tanh(scores / call.softcap)
            sink = call.sinks[head].double().exp() if call.sinks is not None else 0.0
            weights = scores.exp() / (scores.exp().sum() + sink)
            output[row, head] = weights @ values[seen, head // group].double()
    return output


def run(heads: int, layer: LayerKv, reach: Reach, softcap: float | None, sinks: bool, dtype: torch.dtype) -> float:
    """Largest difference between both on one mixed batch, whose earlier KV was written by steps too."""
    generator = torch.Generator().manual_seed(0)
    shape = KvShape((LayerKv(1, 8, 8), layer), dtype.itemsize)
    slab_bytes = 3 * shape.block_bytes + 8 * dtype.itemsize
    needed = sum(shape.blocks_for(start + tokens) for start, tokens in SEQUENCES)
    slabs = -(-needed // 3)
    arena = KvArena(torch.full((slab_bytes * slabs,), POISON, dtype=torch.uint8), slab_bytes)
    free = blocks_of(shape, slab_bytes, range(slabs))
    view, workspace = arena.view(shape, dtype), Workspace()

    def draw(tokens: int, count: int, size: int) -> Tensor:
        return torch.randn(tokens, count, size, generator=generator).to(dtype)

    sequences = []
    for start, tokens in SEQUENCES:
        blocks = [free.pop() for _ in range(shape.blocks_for(start + tokens))]
        length = start + tokens
        keys, values = draw(length, layer.kv_heads, layer.key_size), draw(length, layer.kv_heads, layer.value_size)
        sequences.append((start, tokens, blocks, draw(length, heads, layer.key_size), keys, values))
    call_values = {
        "layer": 1,
        "scaling": 0.3,
        "reach": reach,
        "softcap": softcap,
        "sinks": torch.randn(heads, generator=generator) if sinks else None,
        "extras": {},
    }

    def attend(
        parts: list[tuple[int, int, list[int], Tensor, Tensor, Tensor]],
    ) -> tuple[StepBatch, Tensor, AttentionCall]:
        """One step that feeds positions [start, end) of sequences (start, end, blocks, query, keys, values)."""
        batch = StepBatch.pack([SequenceSlice([0] * (e - s), s, b) for s, e, b, *_ in parts], shape.block_tokens)
        by_blocks = {tuple(b): (q, k, v) for _, _, b, q, k, v in parts}
        lanes = [(lane, by_blocks[tuple(lane.blocks)]) for lane in batch.lanes]
        packed = [torch.cat([t[i][lane.start : lane.end] for lane, t in lanes]).transpose(0, 1)[None] for i in range(3)]
        call = AttentionCall(query=packed[0], key=packed[1], value=packed[2], **call_values)  # type: ignore[arg-type]
        step = PagedStep(batch, view, workspace)
        step.layers_done = 1
        return batch, step.attend(call), call

    earlier = [(0, start, *rest) for start, _, *rest in sequences if start]
    attend(earlier)
    batch, output, call = attend([(start, start + tokens, *rest) for start, tokens, *rest in sequences])
    worst = 0.0
    for start, tokens, blocks, query, keys, values in sequences:
        lane = next(lane for lane in batch.lanes if lane.blocks == blocks)
        expected = naive(query[start : start + tokens], keys, values, start, call)
        found = output[lane.first_row : lane.first_row + tokens].double()
        worst = max(worst, (found - expected).abs().max().item())
        assert not found.isnan().any()
    return worst


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("reach", REACHES.values(), ids=REACHES)
def test_reaches_and_heads(layer: tuple[int, LayerKv], reach: Reach) -> None:
    assert run(*layer, reach, None, False, torch.float32) < 1e-5


@pytest.mark.parametrize("reach", [REACHES["full"], REACHES["window"]], ids=["full", "window"])
@pytest.mark.parametrize(("softcap", "sinks"), [(2.0, False), (None, True), (2.0, True)])
def test_caps_and_sinks(reach: Reach, softcap: float | None, sinks: bool) -> None:
    assert run(*LAYERS["grouped"], reach, softcap, sinks, torch.float32) < 1e-5


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.03), (torch.float16, 0.005)])
def test_half_precision_is_as_exact_as_it_can_be(dtype: torch.dtype, tolerance: float) -> None:
    assert run(*LAYERS["grouped"], Reach(), None, False, dtype) < tolerance


@pytest.mark.parametrize("reach", REACHES.values(), ids=REACHES)
def test_a_reach_says_the_same_in_both_ways(reach: Reach) -> None:
    """``first`` and ``visible`` agree."""
    positions = torch.arange(130)
    seen = reach.visible(positions, positions)
    for position in range(130):
        expected = [reach.first(position) <= key <= position for key in range(130)]
        assert seen[position].tolist() == expected


def test_batches_do_not_influence_each_other() -> None:
    """The output of a decode is bit for bit the same whatever sequences of its length run beside it."""
    shape = KvShape((LayerKv(2, 16, 16),), 4)
    arena = KvArena(torch.full((64 * shape.block_bytes,), POISON, dtype=torch.uint8), shape.block_bytes)
    view, generator = arena.view(shape, torch.float32), torch.Generator().manual_seed(3)
    states = torch.randn(3, 1, 4, 40, 16, generator=generator)
    blocks = random.Random(1).sample([index * shape.block_bytes for index in range(64)], 6)

    def step(tokens: int, start: int, tables: list[list[int]], columns: slice) -> Tensor:
        batch = StepBatch.pack([SequenceSlice([0] * tokens, start, table) for table in tables], 16)
        query, key, value = (part[:, :, columns].repeat(1, 1, len(tables), 1) for part in states)
        call = AttentionCall(0, query, key[:, :2], value[:, :2], 0.25, Reach(), None, None, {})
        return PagedStep(batch, view, Workspace()).attend(call)

    tables = [blocks[:3], blocks[3:]]
    step(39, 0, tables, slice(0, 39))
    together = step(1, 39, tables, slice(39, 40))
    alone = step(1, 39, tables[:1], slice(39, 40))
    assert torch.equal(together[0], together[1])
    assert torch.allclose(together[0], alone[0], atol=1e-6)
