"""Attention by our own Triton kernels: every kind of layer, blocks wherever they lie, nothing copied."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from aegaeon.engine.attention.attention import AttentionCall, Reach
from aegaeon.engine.attention.device_attention import LayerNeeds
from aegaeon.engine.attention.kv_arena import HeadRows
from aegaeon.engine.attention.lanes import Lanes, Tiles

_LEAST_ROWS = 16  # of a matrix product
_CHUNK_ROWS = 64
_COLUMNS = 64
_MOST_LANES = 256  # of a key or a value
_PROGRAMS = 264
"""Programs that keep a large GPU busy (two for each of an H100's processors): fewer decodes split their keys."""

_MOST_SPLITS = 16


class TritonAttention:
    """An ``AttentionBackend``; decodes whose keys are not split fill fewer than ``programs`` programs."""

    name = "triton"
    reads_padding = False

    def __init__(self, *, programs: int = _PROGRAMS) -> None:
        self._programs = programs
        self._loaded: Any = None

    def refuses(self, needs: LayerNeeds) -> str | None:
        if max(needs.key_size, needs.value_size) > _MOST_LANES:
            return f"keys or values of more than {_MOST_LANES}"
        try:
            self._kernels()
        except ImportError as error:
            return f"no Triton ({error})"
        return None

    def prepare(self, lanes: Lanes) -> None:
        return  # it reads everything from the lanes' tensors

    def attend(self, call: AttentionCall, query: Tensor, keys: HeadRows, values: HeadRows, lanes: Lanes) -> Tensor:
        query = query.contiguous()
        output = query.new_empty(*query.shape[:2], values.size)
        if lanes.decodes:
            tiles = lanes.decode_tiles()
            splits = _splits(tiles.count * keys.heads, lanes.longest_tokens, self._programs)
            self._launch(call, query, keys, values, output, lanes.tables, tiles, splits)
        if lanes.chunks:
            tokens = max(1, _CHUNK_ROWS // _power_of_two(query.shape[1] // keys.heads))
            tiles = lanes.chunk_tiles(tokens)
            self._launch(call, query, keys, values, output, lanes.tables, tiles, 1)
        return output

    def _launch(
        self,
        call: AttentionCall,
        query: Tensor,
        keys: HeadRows,
        values: HeadRows,
        output: Tensor,
        tables: Tensor,
        tiles: Tiles,
        splits: int,
    ) -> None:
        group = query.shape[1] // keys.heads
        row_heads = _power_of_two(group)
        rows = max(_LEAST_ROWS, _power_of_two(tiles.most_tokens) * row_heads)
        value_lanes = max(_LEAST_ROWS, _power_of_two(values.size))
        parts = tiles.count * keys.heads * splits * rows if splits > 1 else 0
        part_output = query.new_empty(parts * value_lanes, dtype=torch.float32)
        part_max, part_sum = query.new_empty(2, parts, dtype=torch.float32)
        kernels = self._kernels()
        reach_kind, reach_tokens = _reach(call.reach)
        shape = {"KV_HEADS": keys.heads, "GROUP": group, "VALUE_SIZE": values.size, "ROW_HEADS": row_heads}
        shape |= {"ROWS": rows, "VALUE_LANES": value_lanes, "SPLITS": splits}
        kernels.attend_tiles[tiles.count, keys.heads, splits](
            query,
            keys.elements,
            values.elements,
            output,
            part_output,
            part_max,
            part_sum,
            query if call.sinks is None else call.sinks,
            tables,
            tiles.lanes,
            tiles.rows,
            tiles.tokens,
            tiles.positions,
            tables.stride(0),
            call.scaling,
            call.softcap or 1.0,
            reach_tokens,
            KEY_SIZE=keys.size,
            BLOCK_TOKENS=keys.block_tokens,
            UNIT=keys.unit,
            COLUMNS=_COLUMNS,
            KEY_LANES=max(_LEAST_ROWS, _power_of_two(keys.size)),
            REACH=reach_kind,
            HAS_CAP=call.softcap is not None,
            HAS_SINKS=call.sinks is not None,
            PRECISION="ieee" if query.dtype == torch.float32 else "tf32",
            **shape,
        )
        if splits > 1:
            kernels.join_parts[tiles.count, keys.heads](
                part_output, part_max, part_sum, output, tiles.rows, tiles.tokens, **shape
            )

    def _kernels(self) -> Any:
        if self._loaded is None:
            self._loaded = importlib.import_module("aegaeon.engine.attention.triton_kernels")
        return self._loaded


def _splits(programs: int, longest_tokens: int, wanted_programs: int) -> int:
    """Between how many programs the keys of a lane are divided; of what shapes allow, not of values."""
    most = min(_MOST_SPLITS, -(-longest_tokens // (2 * _COLUMNS)))
    return max(1, min(most, wanted_programs // programs))


def _reach(reach: Reach) -> tuple[int, int]:
    """What the kernel calls it."""
    if reach.chunk_tokens is not None:
        return 2, reach.chunk_tokens
    return (1, reach.window_tokens) if reach.window_tokens is not None else (0, 1)


def _power_of_two(count: int) -> int:
    """The least that is not smaller."""
    return 1 << max(0, count - 1).bit_length()
