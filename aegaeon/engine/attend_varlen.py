"""Attention by torch's own variable-length kernels (FlashAttention, cuDNN), where they take our blocks as pages.

What pages they take depends on the GPU, on torch and on cuDNN, and is not written down anywhere. So a layer's needs are
tried on the device once, with blocks that lie as ours do, against gathering; whatever raises or differs is refused.

Does not know: models, graphs.
"""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aegaeon.core.kv_shape import KvShape, LayerKv
from aegaeon.engine.attend_gather import GatherAttention
from aegaeon.engine.attention import AttentionCall
from aegaeon.engine.device_attention import LayerNeeds
from aegaeon.engine.kv_arena import HeadRows, KvArena
from aegaeon.engine.lanes import Chunk, Lanes

_TOLERANCE = 2e-2  # of half-precision outputs of about 1
_TRIAL_DECODES = 3
_TRIAL_CHUNK = 40


class VarlenAttention:
    """An ``AttentionBackend`` for tensors on ``device``."""

    name = "varlen"
    reads_padding = False

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._trials: dict[LayerNeeds, str | None] = {}

    def refuses(self, needs: LayerNeeds) -> str | None:
        if needs not in self._trials:
            self._trials[needs] = _unfit(needs) or self._try(needs)
        return self._trials[needs]

    def attend(self, call: AttentionCall, query: Tensor, keys: HeadRows, values: HeadRows, lanes: Lanes) -> Tensor:
        output = query.new_empty(*query.shape[:2], values.size)
        count = lanes.decodes
        if count:
            starts = torch.arange(count + 1, dtype=torch.int32, device=query.device)
            lengths = (lanes.decode_positions + 1).int()
            tables = lanes.tables[:count].int()
            output[:count] = _varlen(call, query[:count], keys, values, tables, starts, lengths, 1, lanes)
        for chunk in lanes.chunks:
            rows = slice(chunk.first_row, chunk.first_row + chunk.tokens)
            starts = torch.tensor([0, chunk.tokens], dtype=torch.int32, device=query.device)
            lengths = torch.tensor([chunk.end], dtype=torch.int32, device=query.device)
            tables = lanes.tables[chunk.lane : chunk.lane + 1].int()
            output[rows] = _varlen(call, query[rows], keys, values, tables, starts, lengths, chunk.tokens, lanes)
        return output

    def _try(self, needs: LayerNeeds) -> str | None:
        trial = _Trial.of(needs, self._device)
        try:
            ours = self.attend(trial.call, trial.query, trial.keys, trial.values, trial.lanes)
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            return (str(error).strip() or type(error).__name__).splitlines()[0]
        right = GatherAttention().attend(trial.call, trial.query, trial.keys, trial.values, trial.lanes)
        apart = (ours.float() - right.float()).abs().max().item()
        return None if apart <= _TOLERANCE else f"its results are off by {apart:.2g}"


@dataclass(frozen=True, slots=True)
class _Trial:
    """A small step with all that a layer needs: some decodes and a chunk, on random keys and values."""

    call: AttentionCall
    query: Tensor
    keys: HeadRows
    values: HeadRows
    lanes: Lanes

    @classmethod
    def of(cls, needs: LayerNeeds, device: torch.device) -> _Trial:
        shape = KvShape(
            (LayerKv(needs.kv_heads, needs.key_size, needs.value_size),) * 2, needs.dtype.itemsize, needs.block_tokens
        )
        generator = torch.Generator(device).manual_seed(0)
        width = -(-_TRIAL_CHUNK // needs.block_tokens) + 1
        blocks = (_TRIAL_DECODES + 1) * width
        content = torch.randn(
            blocks * shape.block_bytes // needs.dtype.itemsize, generator=generator, device=device, dtype=needs.dtype
        )
        view = KvArena(content.view(torch.uint8), shape.block_bytes).view(shape, needs.dtype)
        step = shape.block_bytes // view.unit_bytes
        tables = torch.randperm(blocks, generator=generator, device=device).view(-1, width) * step
        positions = torch.tensor([0, needs.block_tokens, 2 * needs.block_tokens - 1], device=device)
        chunk = Chunk(_TRIAL_DECODES, _TRIAL_DECODES, 1, 1 + _TRIAL_CHUNK)
        lanes = Lanes(tables, _TRIAL_DECODES, positions, (chunk,), width * needs.block_tokens)
        rows = _TRIAL_DECODES + _TRIAL_CHUNK
        query = torch.randn(
            rows, needs.query_heads, needs.key_size, generator=generator, device=device, dtype=needs.dtype
        )
        packed = query.transpose(0, 1)[None]
        call = AttentionCall(0, packed, packed, packed, needs.key_size**-0.5, needs.reach, None, None, {})
        return cls(call, query, view.keys[0], view.values[0], lanes)


def _unfit(needs: LayerNeeds) -> str | None:
    """What these kernels cannot do at all."""
    if needs.capped or needs.sinks:
        return "no soft caps or sinks"
    if needs.reach.chunk_tokens is not None:
        return "no chunked attention"
    if needs.dtype not in (torch.bfloat16, torch.float16):
        return f"no {str(needs.dtype).removeprefix('torch.')}"
    return _lacks()


def _lacks() -> str | None:
    try:
        known = inspect.signature(_function()).parameters
    except ImportError:
        return "this torch has no torch.nn.attention.varlen"
    missing = [name for name in ("block_table", "seqused_k", "window_size", "enable_gqa") if name not in known]
    return f"this torch's varlen_attn has no {missing[0]}" if missing else None


def _function() -> Any:
    return importlib.import_module("torch.nn.attention.varlen").varlen_attn


def _varlen(
    call: AttentionCall,
    query: Tensor,
    keys: HeadRows,
    values: HeadRows,
    tables: Tensor,
    starts: Tensor,
    lengths: Tensor,
    most_rows: int,
    lanes: Lanes,
) -> Tensor:
    window = (-1, 0) if call.reach.window_tokens is None else (call.reach.window_tokens - 1, 0)
    output: Tensor = _function()(
        query,
        _pages(keys),
        _pages(values),
        starts,
        None,
        most_rows,
        lanes.longest_tokens,
        scale=call.scaling,
        window_size=window,
        enable_gqa=query.shape[1] != keys.heads,
        seqused_k=lengths,
        block_table=tables,
    )
    return output


def _pages(rows: HeadRows) -> Tensor:
    """Every place where a block may begin as a page ``[pages, block_tokens, heads, size]``; they overlap."""
    elements = rows.elements
    room = rows.heads * rows.block_tokens * rows.size
    begins = (elements.shape[0] - 1) * rows.unit + rows.size - room
    shape = (max(0, begins // rows.unit + 1), rows.block_tokens, rows.heads, rows.size)
    strides = (rows.unit, rows.size, rows.block_tokens * rows.size, 1)
    return elements.as_strided(shape, strides, elements.storage_offset())
