"""Attention by gathering the blocks of a lane and multiplying matrices: every device, every layer, and not the fastest.

It is the reference for the others. Decoding lanes are attended together over the whole width of their block tables, so
that shapes depend on no value; a prompt's chunk is attended by itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aegaeon.engine.attention.attention import AttentionCall
from aegaeon.engine.attention.device_attention import LayerNeeds
from aegaeon.engine.attention.kv_arena import HeadRows
from aegaeon.engine.attention.lanes import Chunk, Lanes

_ROWS = 256
"""Query rows of a chunk attended at a time."""


class GatherAttention:
    """An ``AttentionBackend`` of torch's own operations."""

    name = "gather"
    reads_padding = True

    def refuses(self, needs: LayerNeeds) -> str | None:
        return None

    def prepare(self, lanes: Lanes) -> None:
        return  # it reads everything from the lanes' tensors

    def attend(self, call: AttentionCall, query: Tensor, keys: HeadRows, values: HeadRows, lanes: Lanes) -> Tensor:
        output = query.new_empty(*query.shape[:2], values.size)
        if lanes.decodes:
            positions = lanes.decode_positions[:, None]
            tables = lanes.tables[: lanes.decodes]
            output[: lanes.decodes] = _attend(call, query[: lanes.decodes, None], tables, positions, keys, values)[:, 0]
        for chunk in lanes.chunks:
            self._attend_chunk(call, query, keys, values, lanes.tables, chunk, output)
        return output

    def _attend_chunk(
        self,
        call: AttentionCall,
        query: Tensor,
        keys: HeadRows,
        values: HeadRows,
        tables: Tensor,
        chunk: Chunk,
        output: Tensor,
    ) -> None:
        for first in range(0, chunk.tokens, _ROWS):
            tokens = min(_ROWS, chunk.tokens - first)
            rows = slice(chunk.first_row + first, chunk.first_row + first + tokens)
            end = chunk.start + first + tokens
            table = tables[chunk.lane : chunk.lane + 1, : -(-end // keys.block_tokens)]
            positions = torch.arange(end - tokens, end, device=query.device)[None]
            output[rows] = _attend(call, query[rows][None], table, positions, keys, values)[0]


def _attend(
    call: AttentionCall, query: Tensor, tables: Tensor, positions: Tensor, keys: HeadRows, values: HeadRows
) -> Tensor:
    """``query`` ``[lanes, rows, heads, size]`` at ``positions`` ``[lanes, rows]`` over all columns of ``tables``."""
    lanes, rows, heads, _ = query.shape
    gathered_keys, gathered_values = keys.gathered(tables), values.gathered(tables)
    columns = gathered_keys.shape[2]
    # [lanes, kv_heads, heads per key head, rows, size]
    asked = query.view(lanes, rows, keys.heads, heads // keys.heads, -1).permute(0, 2, 3, 1, 4)
    scores = torch.matmul(asked, gathered_keys[:, :, None].transpose(-1, -2)).float() * call.scaling
    if call.softcap is not None:
        scores = (scores / call.softcap).tanh() * call.softcap
    seen = call.reach.visible(positions, torch.arange(columns, device=query.device))
    scores = scores.masked_fill(~seen[:, None, None], float("-inf"))
    weights = _softmax(scores, call.sinks).to(gathered_values.dtype)
    mixed = torch.matmul(weights, gathered_values[:, :, None])
    return mixed.permute(0, 3, 1, 2, 4).reshape(lanes, rows, heads, values.size)


def _softmax(scores: Tensor, sinks: Tensor | None) -> Tensor:
    """Over the last of ``[lanes, kv_heads, group, rows, columns]``."""
    if sinks is None:
        return scores.softmax(-1)
    column = sinks.float().view(1, scores.shape[1], scores.shape[2], 1, 1).expand(*scores.shape[:4], 1)
    return torch.cat((scores, column), -1).softmax(-1)[..., :-1]
