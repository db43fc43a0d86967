"""Paged attention in Triton, on KV blocks as they lie in an arena (see ``kv_arena``).

One program attends a tile: a few consecutive query tokens of a lane with all query heads of one key head, over the keys
that they see or, where keys are split between programs, over a part of them; a second kernel puts the parts together.
Softmax is computed online (Milakov and Gimelshein, 2018; Dao et al., "FlashAttention", 2022), split keys as in
"Flash-Decoding" (Dao et al., 2023).

Importing this needs Triton. With ``TRITON_INTERPRET=1`` set before, kernels run on the CPU.
"""

from __future__ import annotations

import triton
import triton.language as tl

FULL, WINDOW, CHUNK = 0, 1, 2
"""What ``REACH`` may be; ``reach_tokens`` is the window's or the chunk's size."""


@triton.jit
def attend_tiles(
    query,
    keys,
    values,
    output,
    part_output,
    part_max,
    part_sum,
    sinks,
    tables,
    tile_lanes,
    tile_rows,
    tile_tokens,
    tile_positions,
    table_width,
    scaling,
    softcap,
    reach_tokens,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    KEY_SIZE: tl.constexpr,
    VALUE_SIZE: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    UNIT: tl.constexpr,
    ROW_HEADS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    KEY_LANES: tl.constexpr,
    VALUE_LANES: tl.constexpr,
    SPLITS: tl.constexpr,
    REACH: tl.constexpr,
    HAS_CAP: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Grid: (tiles, KV_HEADS, SPLITS). Rows of a tile: its tokens, each with ROW_HEADS (>= GROUP) heads."""
    tile = tl.program_id(0)
    head = tl.program_id(1)
    split = tl.program_id(2)
    lane = tl.load(tile_lanes + tile).to(tl.int64)
    first_row = tl.load(tile_rows + tile).to(tl.int64)
    tokens = tl.load(tile_tokens + tile).to(tl.int32)
    first_position = tl.load(tile_positions + tile).to(tl.int32)

    row = tl.arange(0, ROWS)
    token = row // ROW_HEADS
    member = row % ROW_HEADS
    used = (token < tokens) & (member < GROUP)
    position = first_position + token
    query_head = head * GROUP + member
    key_lane = tl.arange(0, KEY_LANES)
    value_lane = tl.arange(0, VALUE_LANES)
    row_heads = (first_row + token) * (KV_HEADS * GROUP) + query_head
    asked = tl.load(
        query + row_heads[:, None] * KEY_SIZE + key_lane[None, :],
        mask=used[:, None] & (key_lane < KEY_SIZE)[None, :],
        other=0.0,
    )

    end = first_position + tokens
    begin = 0
    if REACH == 1:
        begin = tl.maximum(first_position - reach_tokens + 1, 0)
    if REACH == 2:
        begin = first_position // reach_tokens * reach_tokens
    begin = begin // COLUMNS * COLUMNS
    share = tl.cdiv(tl.cdiv(end - begin, COLUMNS), SPLITS) * COLUMNS
    begin = begin + split * share
    end = tl.minimum(end, begin + share)

    largest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    if HAS_SINKS:
        if split == 0:
            largest = tl.load(sinks + query_head, mask=used, other=0.0).to(tl.float32)
            total = total + 1.0
    mixed = tl.zeros([ROWS, VALUE_LANES], tl.float32)

    for start in range(begin, end, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        there = column < end
        block = tl.load(tables + lane * table_width + column // BLOCK_TOKENS, mask=there, other=0).to(tl.int64)
        slot = head * BLOCK_TOKENS + column % BLOCK_TOKENS
        found = tl.load(
            keys + (block * UNIT + slot * KEY_SIZE)[None, :] + key_lane[:, None],
            mask=there[None, :] & (key_lane < KEY_SIZE)[:, None],
            other=0.0,
        )
        scores = tl.dot(asked, found, input_precision=PRECISION).to(tl.float32) * scaling
        if HAS_CAP:
            bent = tl.exp(-2.0 * tl.abs(scores / softcap))
            scores = softcap * tl.where(scores < 0, bent - 1.0, 1.0 - bent) / (1.0 + bent)
        seen = there[None, :] & (column[None, :] <= position[:, None])
        if REACH == 1:
            seen = seen & (column[None, :] > position[:, None] - reach_tokens)
        if REACH == 2:
            seen = seen & (column[None, :] >= (position // reach_tokens * reach_tokens)[:, None])
        scores = tl.where(seen, scores, float("-inf"))
        now_largest = tl.maximum(largest, tl.max(scores, 1))
        anchor = tl.where(now_largest == float("-inf"), 0.0, now_largest)
        weights = tl.exp(scores - anchor[:, None])
        faded = tl.exp(largest - anchor)
        total = total * faded + tl.sum(weights, 1)
        held = tl.load(
            values + (block * UNIT + slot * VALUE_SIZE)[:, None] + value_lane[None, :],
            mask=there[:, None] & (value_lane < VALUE_SIZE)[None, :],
            other=0.0,
        )
        mixed = mixed * faded[:, None] + tl.dot(weights.to(held.dtype), held, input_precision=PRECISION)
        largest = now_largest

    if SPLITS == 1:
        result = mixed / tl.where(total == 0.0, 1.0, total)[:, None]
        tl.store(
            output + row_heads[:, None] * VALUE_SIZE + value_lane[None, :],
            result.to(output.dtype.element_ty),
            mask=used[:, None] & (value_lane < VALUE_SIZE)[None, :],
        )
    else:
        part = ((tile * KV_HEADS + head) * SPLITS + split) * ROWS + row
        tl.store(part_max + part, largest)
        tl.store(part_sum + part, total)
        tl.store(part_output + part[:, None] * VALUE_LANES + value_lane[None, :], mixed)


@triton.jit
def join_parts(
    part_output,
    part_max,
    part_sum,
    output,
    tile_rows,
    tile_tokens,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    VALUE_SIZE: tl.constexpr,
    ROW_HEADS: tl.constexpr,
    ROWS: tl.constexpr,
    VALUE_LANES: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Grid: (tiles, KV_HEADS)."""
    tile = tl.program_id(0)
    head = tl.program_id(1)
    first_row = tl.load(tile_rows + tile).to(tl.int64)
    tokens = tl.load(tile_tokens + tile).to(tl.int32)
    row = tl.arange(0, ROWS)
    token = row // ROW_HEADS
    member = row % ROW_HEADS
    used = (token < tokens) & (member < GROUP)
    value_lane = tl.arange(0, VALUE_LANES)
    base = (tile * KV_HEADS + head) * SPLITS * ROWS + row
    largest = tl.full([ROWS], float("-inf"), tl.float32)
    for split in range(SPLITS):
        largest = tl.maximum(largest, tl.load(part_max + base + split * ROWS))
    anchor = tl.where(largest == float("-inf"), 0.0, largest)
    total = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, VALUE_LANES], tl.float32)
    for split in range(SPLITS):
        part = base + split * ROWS
        faded = tl.exp(tl.load(part_max + part) - anchor)
        total += tl.load(part_sum + part) * faded
        mixed += tl.load(part_output + part[:, None] * VALUE_LANES + value_lane[None, :]) * faded[:, None]
    result = mixed / tl.where(total == 0.0, 1.0, total)[:, None]
    row_heads = (first_row + token) * (KV_HEADS * GROUP) + head * GROUP + member
    tl.store(
        output + row_heads[:, None] * VALUE_SIZE + value_lane[None, :],
        result.to(output.dtype.element_ty),
        mask=used[:, None] & (value_lane < VALUE_SIZE)[None, :],
    )
