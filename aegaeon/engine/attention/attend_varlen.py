"""Attention by torch's own variable-length kernels (FlashAttention, cuDNN), where they take our blocks as pages.

What pages they take depends on the GPU, on torch and on cuDNN, and is not written down anywhere. So a layer's needs are
tried on the device once, with blocks that lie as ours do, against gathering; whatever raises or differs is refused.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import torch
from torch import Tensor

from aegaeon.engine.attention.attend_trial import trial_problem
from aegaeon.engine.attention.attention import AttentionCall
from aegaeon.engine.attention.device_attention import LayerNeeds
from aegaeon.engine.attention.kv_arena import HeadRows
from aegaeon.engine.attention.lanes import Lanes


class VarlenAttention:
    """An ``AttentionBackend`` for tensors on ``device``."""

    name = "varlen"
    reads_padding = False

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._trials: dict[LayerNeeds, str | None] = {}

    def refuses(self, needs: LayerNeeds) -> str | None:
        if needs not in self._trials:
            self._trials[needs] = _unfit(needs) or trial_problem(self, needs, self._device)
        return self._trials[needs]

    def prepare(self, lanes: Lanes) -> None:
        return  # it reads everything from the lanes' tensors

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
