"""Tensor views of the KV blocks in an arena.

An arena is flat memory cut into slabs; a block lies anywhere in it and is named by its byte offset. A block holds all
layers, and within a layer its keys (then its values) lie head by head::

    layer of a block:  K [kv_heads, block_tokens, key_size] | V [kv_heads, block_tokens, value_size]

so one head of a block is one contiguous row, and gathering the blocks of a sequence gives ``[kv_heads, tokens, size]``,
which is what batched matrix products read without another copy. States, where a model has some, come behind that.

Blocks of a slab follow each other, but a slab need not be a whole number of blocks. Rows are therefore counted in
*units*, the largest number of elements that divides every offset a row can have: views have a row at each unit (they
overlap; only the rows at real offsets are used), and an offset becomes an index by one division.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aegaeon.core.kv_shape import KvShape
from aegaeon.engine.attention.state_rows import BlockStates, usable_tokens


class HeadRows:
    """The keys, or the values, of one layer in every block of an arena."""

    def __init__(self, elements: Tensor, offset: int, heads: int, size: int, block_tokens: int, unit: int) -> None:
        self.heads = heads
        self.size = size
        self.block_tokens = block_tokens
        self.unit = unit
        self.dtype = elements.dtype
        self._blocks = _rows(elements, offset, block_tokens * size, unit)
        self._tokens = _rows(elements, offset, size, unit)

    @property
    def geometry(self) -> tuple[int, int]:
        """(heads, size): rows of one geometry share their indices."""
        return self.heads, self.size

    def block_index(self, blocks: Tensor) -> Tensor:
        """Index for ``gather`` of block tables ``[sequences, blocks]`` in units."""
        head = torch.arange(self.heads, device=blocks.device) * (self.block_tokens * self.size // self.unit)
        return (blocks[:, None, :] + head[None, :, None]).reshape(-1)

    def token_index(self, blocks: Tensor, slots: Tensor) -> Tensor:
        """Index for ``scatter`` of tokens in blocks (units) and slots within them, both ``[tokens]``."""
        row = self.size // self.unit
        head = torch.arange(self.heads, device=blocks.device) * (self.block_tokens * row)
        return ((blocks + slots * row)[:, None] + head).reshape(-1)

    @property
    def elements(self) -> Tensor:
        """Begins at the first block's first row; a row in units begins ``unit`` elements after the one before."""
        return self._tokens

    def gathered(self, tables: Tensor) -> Tensor:
        """A copy of the blocks of tables ``[lanes, width]``: ``[lanes, heads, width * block_tokens, size]``."""
        rows = self._blocks.index_select(0, self.block_index(tables))
        return rows.view(tables.shape[0], self.heads, -1, self.size)

    def gather(self, index: Tensor, out: Tensor) -> Tensor:
        """Copy blocks to ``out`` (flat, any size that is enough); ``[index rows, block_tokens, size]``."""
        rows = out[: index.numel() * self.block_tokens * self.size].view(index.numel(), -1)
        torch.index_select(self._blocks, 0, index, out=rows)
        return rows.view(-1, self.block_tokens, self.size)

    def scatter(self, index: Tensor, states: Tensor) -> None:
        """Write ``states`` ``[tokens, heads, size]`` to where ``token_index`` said."""
        self._tokens.index_copy_(0, index, states.reshape(-1, self.size))


@dataclass(frozen=True, slots=True)
class KvView:
    """An arena as blocks of one shape and dtype."""

    shape: KvShape
    dtype: torch.dtype
    unit_bytes: int
    keys: tuple[HeadRows, ...]
    values: tuple[HeadRows, ...]
    states: BlockStates | None
    memory: Tensor

    def clear(self, offset: int) -> None:
        """Zero keys and values of the block at a byte offset."""
        self.memory[offset : offset + self.shape.kv_bytes].zero_()


class KvArena:
    """Flat memory in slabs of ``slab_bytes``. ``base``: its bytes, one-dimensional and contiguous.

    ``trash``: byte offset of room behind the slabs for one block of any shape, which takes what padding writes.
    """

    def __init__(self, base: Tensor, slab_bytes: int, trash: int | None = None) -> None:
        if base.dtype != torch.uint8 or base.dim() != 1 or not base.is_contiguous():
            raise ValueError("an arena is a one-dimensional contiguous tensor of bytes")
        if slab_bytes < 1:
            raise ValueError(f"slabs must have a positive size, got {slab_bytes}")
        self._base = base
        if trash is not None and (trash % slab_bytes or trash >= base.numel()):
            raise ValueError(f"room for padding must lie behind whole slabs, not at {trash}")
        self._slab_bytes = slab_bytes
        self._trash = trash
        self._views: dict[tuple[KvShape, torch.dtype], KvView] = {}

    @property
    def size_bytes(self) -> int:
        """Bytes of the arena."""
        return self._base.numel()

    def usable_tokens(self, shape: KvShape, blocks: Sequence[int], tokens: int) -> int:
        """From how many of the first ``tokens`` tokens of a sequence one can go on, in host memory: where a model keeps
        states, the most that there is a state of."""
        return usable_tokens(self._base, shape, blocks, tokens)

    @property
    def device(self) -> torch.device:
        """The device that the memory is on."""
        return self._base.device

    @property
    def trash(self) -> int:
        """Byte offset of the block for padding. Raises ``ValueError`` where there is none."""
        if self._trash is None:
            raise ValueError("this arena has no room for padding: make it with some")
        return self._trash

    def copy_block(self, shape: KvShape, source: int, target: int) -> None:
        """Copy a block to where another was."""
        size = shape.block_bytes
        self._base[target : target + size].copy_(self._base[source : source + size])

    def view(self, shape: KvShape, dtype: torch.dtype) -> KvView:
        """The arena as blocks of ``shape``; made once. Raises ``ValueError`` if sizes do not fit together."""
        key = (shape, dtype)
        if key not in self._views:
            self._views[key] = self._make_view(shape, dtype)
        return self._views[key]

    def _make_view(self, shape: KvShape, dtype: torch.dtype) -> KvView:
        item = dtype.itemsize
        if shape.element_bytes != item:
            raise ValueError(f"KV of {dtype} does not fit a shape of {shape.element_bytes}-byte elements")
        if self._slab_bytes % item or self._base.storage_offset() % item:
            raise ValueError(f"slabs of {self._slab_bytes} bytes are not aligned to {dtype}")
        elements = self._base[: self.size_bytes // item * item].view(dtype)
        sizes = [size for layer in shape.layers for size in (layer.key_size, layer.value_size)]
        unit = math.gcd(self._slab_bytes // item, shape.block_bytes // item, *sizes)
        keys, values = [], []
        for layer, offset in zip(shape.layers, shape.layer_offsets, strict=True):
            value_offset = offset + shape.block_tokens * layer.kv_heads * layer.key_size
            keys.append(HeadRows(elements, offset, layer.kv_heads, layer.key_size, shape.block_tokens, unit))
            values.append(HeadRows(elements, value_offset, layer.kv_heads, layer.value_size, shape.block_tokens, unit))
        states = BlockStates(self._base, self._slab_bytes, shape, unit * item) if shape.states else None
        return KvView(shape, dtype, unit * item, tuple(keys), tuple(values), states, self._base)


def _rows(elements: Tensor, offset: int, width: int, unit: int) -> Tensor:
    """Every row of ``width`` elements that begins a whole number of units after ``offset``."""
    count = max(0, (elements.numel() - offset - width) // unit + 1)
    return elements.as_strided((count, width), (unit, 1), elements.storage_offset() + offset)
