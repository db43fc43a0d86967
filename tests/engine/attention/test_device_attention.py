"""Attention as devices do it, against plain arithmetic: gathering, and the Triton kernels in their interpreter."""

from __future__ import annotations

import logging
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from aegaeon.core.kv_shape import KvShape, LayerKv
from aegaeon.engine.attention.attend_gather import GatherAttention
from aegaeon.engine.attention.attend_triton import TritonAttention
from aegaeon.engine.attention.attention import AttentionCall, Reach
from aegaeon.engine.attention.batch import StepBatch
from aegaeon.engine.attention.device_attention import AttentionBackend, DeviceAttention, LayerNeeds, NoAttentionError
from aegaeon.engine.attention.kv_arena import KvArena
from aegaeon.engine.attention.lanes import Lanes
from aegaeon.engine.attention.sequence_slice import SequenceSlice
from aegaeon.engine.step.device_step import DeviceBatch, DeviceStep, clear_fresh
from tests.engine.attention.test_attention import LAYERS, REACHES, SEQUENCES, naive
from tests.engine.greedy import POISON, blocks_of

CPU = torch.device("cpu")
FEW = [(0, 1), (17, 1), (70, 1), (9, 30), (60, 70)]


def difference(
    backend: AttentionBackend,
    heads: int,
    layer: LayerKv,
    reach: Reach,
    softcap: float | None,
    sinks: bool,
    dtype: torch.dtype,
    sequences: list[tuple[int, int]],
) -> float:
    """The largest difference to plain arithmetic, on one batch that mixes decodes and chunks."""
    generator = torch.Generator().manual_seed(0)
    shape = KvShape((LayerKv(1, 8, 8), layer), dtype.itemsize)
    slab_bytes = 3 * shape.block_bytes + 8 * dtype.itemsize
    slabs = -(-sum(shape.blocks_for(start + tokens) for start, tokens in sequences) // 3)
    arena = KvArena(torch.full((slab_bytes * slabs,), POISON, dtype=torch.uint8), slab_bytes)
    free, view = blocks_of(shape, slab_bytes, range(slabs)), arena.view(shape, dtype)
    attention = DeviceAttention([backend])

    def draw(tokens: int, count: int, size: int) -> Tensor:
        return torch.randn(tokens, count, size, generator=generator).to(dtype)

    def run(slices: list[SequenceSlice], query: Tensor, keys: Tensor, values: Tensor) -> tuple[StepBatch, Tensor]:
        batch = StepBatch.pack(slices, shape.block_tokens)
        if backend.reads_padding:
            clear_fresh(view, batch.fresh_blocks)
        sink = torch.linspace(-1, 1, heads) if sinks else None
        pack = [states.transpose(0, 1)[None] for states in (query, keys, values)]
        call = AttentionCall(1, *pack, layer.key_size**-0.5, reach, softcap, sink, {})
        calls.append(call)
        step = DeviceStep(DeviceBatch.of(batch, view, CPU), view, attention, layers_done=1)
        return batch, step.attend(call)

    calls: list[AttentionCall] = []
    tables = [[free.pop() for _ in range(shape.blocks_for(start + tokens))] for start, tokens in sequences]
    known = [
        (draw(start + tokens, layer.kv_heads, layer.key_size), draw(start + tokens, layer.kv_heads, layer.value_size))
        for start, tokens in sequences
    ]
    for (start, _), blocks, (keys, values) in zip(sequences, tables, known, strict=True):
        if start:
            slices = [SequenceSlice(list(range(start)), 0, blocks)]
            run(slices, draw(start, heads, layer.key_size), keys[:start], values[:start])
    slices = [
        SequenceSlice(list(range(tokens)), start, blocks)
        for (start, tokens), blocks in zip(sequences, tables, strict=True)
    ]
    order = StepBatch.pack(slices, shape.block_tokens).lanes
    places = [next(i for i, blocks in enumerate(tables) if blocks == list(lane.blocks)) for lane in order]
    queries = [draw(sequences[i][1], heads, layer.key_size) for i in places]
    new_keys = torch.cat([known[i][0][sequences[i][0] :] for i in places])
    new_values = torch.cat([known[i][1][sequences[i][0] :] for i in places])
    _, output = run(slices, torch.cat(queries), new_keys, new_values)
    expected = torch.cat(
        [naive(query, *known[i], sequences[i][0], calls[-1]) for query, i in zip(queries, places, strict=True)]
    )
    return (output.double() - expected).abs().max().item()


@pytest.mark.parametrize("reach", REACHES.values(), ids=REACHES.keys())
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())
def test_gathering_is_exact(layer: tuple[int, LayerKv], reach: Reach) -> None:
    for softcap, sinks in ((None, False), (5.0, True)):
        error = difference(GatherAttention(), *layer, reach, softcap, sinks, torch.float32, SEQUENCES)
        assert error < 1e-5


@pytest.mark.parametrize("reach", REACHES.values(), ids=REACHES.keys())
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())
def test_the_kernels_are_exact(layer: tuple[int, LayerKv], reach: Reach) -> None:
    for splits, softcap, sinks in ((1, None, False), (3, 5.0, True)):
        backend = TritonAttention(programs=splits * 3 * layer[1].kv_heads)
        error = difference(backend, *layer, reach, softcap, sinks, torch.float32, FEW)
        assert error < 1e-5


def test_the_kernels_in_half_precision() -> None:
    """Not bfloat16: the interpreter multiplies its bits as if they were integers."""
    error = difference(TritonAttention(), 6, LayerKv(2, 16, 16), Reach(), None, False, torch.float16, FEW)
    assert error < 3e-3


class Choosy:
    """A backend that takes nothing."""

    name = "choosy"
    reads_padding = False

    def refuses(self, needs: LayerNeeds) -> str | None:
        return f"not {needs.key_size}"

    def prepare(self, lanes: Lanes) -> None:
        raise AssertionError("it said that it cannot")

    def attend(self, *_: object) -> Tensor:
        raise AssertionError("it said that it cannot")


def needs(key_size: int = 64) -> LayerNeeds:
    return LayerNeeds(torch.bfloat16, 8, 2, key_size, key_size, 16, 128, Reach(window_tokens=9), True, True)


def test_what_a_backend_cannot_do_falls_to_the_next_visibly(caplog: pytest.LogCaptureFixture) -> None:
    attention = DeviceAttention([Choosy(), TritonAttention(), GatherAttention()])
    with caplog.at_level(logging.INFO):
        assert attention.choose(needs()).name == "triton"
        assert attention.choose(needs()).name == "triton"
    assert caplog.messages == [
        "attention of 8 query and 2 key heads of 64 in bfloat16, window of 9, soft cap, sinks: triton; "
        "not choosy: not 64"
    ]
    assert attention.choose(needs(512)).name == "gather"
    assert attention.reads_padding


def test_no_backend_says_why() -> None:
    with pytest.raises(NoAttentionError, match="choosy: not 64"):
        DeviceAttention([Choosy()]).choose(needs())


def test_order_of_sequences_does_not_matter() -> None:
    shuffled = random.Random(0).sample(FEW, len(FEW))
    layer = LAYERS["grouped"]
    assert difference(TritonAttention(), *layer, Reach(), None, False, torch.float32, shuffled) < 1e-5


def test_the_kernels_compile_for_a_gpu(tmp_path: Path) -> None:
    """To binaries for Hopper; no GPU takes part, and no interpreter."""
    script = Path(__file__).with_name("compile_kernels.py")
    environment = os.environ | {
        "TRITON_INTERPRET": "0",
        "TRITON_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": str(script.parents[2]),
    }
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(int(size) > 1000 for size in done.stdout.split())
    assert len(done.stdout.split()) == 4
