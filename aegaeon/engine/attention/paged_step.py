"""Paged attention of one step, on tensors: write the new keys and values, gather those of the context, attend.

Sequences that decode are attended together in groups of similar context; a chunk of a prompt is a group of its own and
goes in tiles of query rows, each against the keys that its rows see, so no mask is larger than it must be. Blocks are
gathered head by head (see ``kv_arena``), so scores and outputs are batched matrix products over (sequence, key head),
with the query heads that share a key head as rows: on CPUs this is faster than the fused kernels (2 to 4 times in
bfloat16, all but a few decodes), and caps, sinks and windows come for free.

A slot that no token was written to must hold finite numbers, since 0 times infinity would reach the output; blocks are
therefore zeroed when their first token is written, and padding repeats blocks of the sequence itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from aegaeon.engine.attention.attention import AttentionCall, Reach
from aegaeon.engine.attention.batch import Lane, StepBatch
from aegaeon.engine.attention.kv_arena import HeadRows, KvView
from aegaeon.engine.attention.workspace import Workspace

_PADDED_SHARE = 1.5
"""Blocks gathered for a group of decodes, over blocks needed."""

_GROUP_ELEMENTS = 1 << 23
"""Keys gathered for a group of decodes, at most (unless one sequence has more)."""

_SMALL_KEYS = 2048
"""Keys (over sequences and heads) up to which the fused kernel is faster, for it is one call."""

_TILE_SCORES = 1 << 19
"""Scores of a tile, about; they should stay in the cache from one pass to the next."""

_TILE_ROWS = (16, 64)
"""Query rows of a tile, at least and at most."""


@dataclass(frozen=True, slots=True)
class _Tile:
    """Query rows of a group against key columns; ``mask`` is added to the scores from column ``mask_from`` on."""

    rows: slice
    columns: slice
    mask_from: int
    mask: Tensor


@dataclass(frozen=True, slots=True)
class _Group:
    """Sequences attended together: ``blocks`` ``[sequences, blocks]`` in units, each with as many query rows."""

    rows: slice
    blocks: Tensor
    tiles: tuple[_Tile, ...]
    indices: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def index(self, rows: HeadRows) -> Tensor:
        """Gather index; layers of one geometry share it."""
        if rows.geometry not in self.indices:
            self.indices[rows.geometry] = rows.block_index(self.blocks)
        return self.indices[rows.geometry]


class PagedStep:
    """What is passed to a model as ``paged``, for one step. Layers attend in order: ``layers_done`` have."""

    def __init__(self, batch: StepBatch, view: KvView, workspace: Workspace) -> None:
        self._batch = batch
        self._view = view
        self._workspace = workspace
        self._token_units = batch.token_blocks // view.unit_bytes
        self._plans: dict[tuple[Reach, int, int], tuple[_Group, ...]] = {}
        self._write_indices: dict[tuple[int, int], Tensor] = {}
        self.layers_done = 0
        for block in batch.fresh_blocks:
            view.clear(block)

    def attend(self, call: AttentionCall) -> Tensor:
        """Write the layer's new keys and values, and attend. Output ``[T, heads, value_size]``."""
        keys, values = self._view.keys[self.layers_done], self._view.values[self.layers_done]
        self._write(keys, call.key)
        self._write(values, call.value)
        self.layers_done += 1
        query = call.query[0].transpose(0, 1).to(self._view.dtype)
        tokens, heads, _ = query.shape
        output = query.new_empty(tokens, heads, values.size)
        for group in self._plan(call.reach, heads, keys):
            gathered_keys = self._gather("keys", keys, group)
            gathered_values = self._gather("values", values, group)
            _attend(call, group, query[group.rows], gathered_keys, gathered_values, output[group.rows])
        return output

    def _write(self, rows: HeadRows, states: Tensor) -> None:
        if rows.geometry not in self._write_indices:
            self._write_indices[rows.geometry] = rows.token_index(self._token_units, self._batch.token_slots)
        rows.scatter(self._write_indices[rows.geometry], states[0].transpose(0, 1).to(self._view.dtype))

    def _gather(self, name: str, rows: HeadRows, group: _Group) -> Tensor:
        """``[sequences * kv_heads, tokens, size]``"""
        index = group.index(rows)
        elements = index.numel() * self._view.shape.block_tokens * rows.size
        gathered = rows.gather(index, self._workspace.take(name, elements, self._view.dtype))
        return gathered.view(group.blocks.shape[0] * rows.heads, -1, rows.size)

    def _plan(self, reach: Reach, query_heads: int, keys: HeadRows) -> tuple[_Group, ...]:
        token_elements = keys.heads * keys.size
        key = (reach, query_heads, token_elements)
        if key not in self._plans:
            planner = _Planner(reach, query_heads, token_elements, self._view)
            self._plans[key] = tuple(planner.groups(self._batch.lanes))
        return self._plans[key]


class _Planner:
    """Cuts a batch into groups and tiles for one reach."""

    def __init__(self, reach: Reach, query_heads: int, token_elements: int, view: KvView) -> None:
        self._reach = reach
        self._query_heads = query_heads
        self._block_tokens = view.shape.block_tokens
        self._max_blocks = max(1, _GROUP_ELEMENTS // (token_elements * self._block_tokens))
        self._unit_bytes = view.unit_bytes

    def groups(self, lanes: Sequence[Lane]) -> Iterator[_Group]:
        decodes = [lane for lane in lanes if lane.tokens == 1]
        yield from (self._decode_group(members) for members in self._alike(decodes))
        yield from (self._chunk_group(lane) for lane in lanes if lane.tokens > 1)

    def _first_block(self, lane: Lane) -> int:
        return self._reach.first(lane.start) // self._block_tokens

    def _seen_blocks(self, lane: Lane) -> int:
        return (lane.end - 1) // self._block_tokens - self._first_block(lane) + 1

    def _table(self, lane: Lane, blocks: int) -> list[int]:
        """Offsets of the blocks that the lane sees, padded with its last."""
        first, seen = self._first_block(lane), self._seen_blocks(lane)
        table = list(lane.blocks[first : first + seen])
        return table + table[-1:] * (blocks - seen)

    def _alike(self, lanes: Sequence[Lane]) -> Iterator[list[Lane]]:
        """Runs of neighbours whose padding to the longest is small."""
        members: list[Lane] = []
        used = longest = 0
        for lane in lanes:
            seen = self._seen_blocks(lane)
            padded = (len(members) + 1) * max(longest, seen)
            if members and (padded > _PADDED_SHARE * (used + seen) or padded > self._max_blocks):
                yield members
                members, used, longest = [], 0, 0
            members.append(lane)
            used, longest = used + seen, max(longest, seen)
        if members:
            yield members

    def _decode_group(self, lanes: list[Lane]) -> _Group:
        blocks = max(self._seen_blocks(lane) for lane in lanes)
        columns = blocks * self._block_tokens
        begin = torch.tensor([self._first_block(lane) * self._block_tokens for lane in lanes])
        queries = torch.tensor([[lane.start] for lane in lanes])
        mask = self._mask(queries, begin[:, None] + torch.arange(columns))
        first_row = lanes[0].first_row
        return _Group(
            slice(first_row, first_row + len(lanes)),
            self._units([self._table(lane, blocks) for lane in lanes]),
            (_Tile(slice(0, 1), slice(0, columns), 0, mask),),
        )

    def _chunk_group(self, lane: Lane) -> _Group:
        blocks = self._seen_blocks(lane)
        fewest, most = _TILE_ROWS
        rows = min(most, max(fewest, _TILE_SCORES // (self._query_heads * blocks * self._block_tokens)))
        tiles = (self._tile(lane, row, min(row + rows, lane.tokens)) for row in range(0, lane.tokens, rows))
        return _Group(
            slice(lane.first_row, lane.first_row + lane.tokens),
            self._units([self._table(lane, blocks)]),
            tuple(tiles),
        )

    def _tile(self, lane: Lane, first_row: int, end_row: int) -> _Tile:
        """Where all rows see the same first key, only the columns after the first row's own need a mask."""
        begin = self._first_block(lane) * self._block_tokens
        first, last = lane.start + first_row, lane.start + end_row - 1
        seen_from = self._reach.first(first)
        masked_from = first + 1 if seen_from == self._reach.first(last) else seen_from
        mask = self._mask(torch.arange(first, last + 1)[None], torch.arange(masked_from, last + 1)[None])
        columns = slice(seen_from - begin, last + 1 - begin)
        return _Tile(slice(first_row, end_row), columns, masked_from - seen_from, mask)

    def _mask(self, queries: Tensor, keys: Tensor) -> Tensor:
        """``[sequences, 1, 1, rows, columns]``: 0 where a key is seen, else minus infinity."""
        seen = self._reach.visible(queries, keys)
        return torch.zeros(seen.shape).masked_fill_(~seen, float("-inf"))[:, None, None]

    def _units(self, tables: list[list[int]]) -> Tensor:
        return torch.tensor(tables) // self._unit_bytes


def _attend(call: AttentionCall, group: _Group, query: Tensor, keys: Tensor, values: Tensor, output: Tensor) -> None:
    """Attend a group: ``query`` and ``output`` are its rows, keys and values ``[sequences * kv_heads, L, size]``."""
    if _is_small(call, group, keys, values):
        _attend_small(call, group, query, keys, values, output)
        return
    for tile in group.tiles:
        _attend_tile(call, group, tile, query, keys, values, output)


def _is_small(call: AttentionCall, group: _Group, keys: Tensor, values: Tensor) -> bool:
    decodes = group.rows.stop - group.rows.start == group.blocks.shape[0]
    plain = call.softcap is None and call.sinks is None and keys.shape == values.shape
    return decodes and plain and keys.shape[0] * keys.shape[1] <= _SMALL_KEYS


def _attend_small(
    call: AttentionCall, group: _Group, query: Tensor, keys: Tensor, values: Tensor, output: Tensor
) -> None:
    """Attend a group of decodes, each with the query heads of a key head as rows."""
    sequences = group.blocks.shape[0]
    keys, values = keys.view(sequences, -1, *keys.shape[1:]), values.view(sequences, -1, *values.shape[1:])
    rows = query.view(*keys.shape[:2], -1, keys.shape[3])
    mask = group.tiles[0].mask[:, :, 0].to(rows.dtype)
    attended = functional.scaled_dot_product_attention(rows, keys, values, attn_mask=mask, scale=call.scaling)
    output.copy_(attended.reshape(output.shape))


def _attend_tile(
    call: AttentionCall, group: _Group, tile: _Tile, query: Tensor, keys: Tensor, values: Tensor, output: Tensor
) -> None:
    """Attend a tile of a group."""
    sequences = group.blocks.shape[0]
    kv_heads = keys.shape[0] // sequences
    shape = (sequences, -1, kv_heads, query.shape[1] // kv_heads)
    # [sequences, kv_heads, heads per key head, rows, size]
    rows = query.view(*shape, query.shape[2])[:, tile.rows].permute(0, 2, 3, 1, 4)
    flat = rows.reshape(keys.shape[0], -1, keys.shape[2])
    scores = torch.bmm(flat, keys[:, tile.columns].transpose(1, 2)).view(*rows.shape[:4], -1)
    weights = _weights(scores, call, tile).to(values.dtype)
    mixed = torch.bmm(weights.view(keys.shape[0], flat.shape[1], -1), values[:, tile.columns])
    out = output.view(*shape, values.shape[2])
    out[:, tile.rows] = mixed.view(*rows.shape[:4], -1).permute(0, 3, 1, 2, 4)


def _weights(scores: Tensor, call: AttentionCall, tile: _Tile) -> Tensor:
    """Softmax in float32 of ``[sequences, kv_heads, group, rows, columns]``."""
    scores = scores.float() * call.scaling
    if call.softcap is not None:
        scores = scores.div_(call.softcap).tanh_().mul_(call.softcap)
    scores[..., tile.mask_from :] += tile.mask
    if call.sinks is None:
        return scores.softmax(-1)
    sinks = call.sinks.float().view(1, scores.shape[1], scores.shape[2], 1, 1).expand(*scores.shape[:4], 1)
    return torch.cat((scores, sinks), -1).softmax(-1)[..., :-1]
