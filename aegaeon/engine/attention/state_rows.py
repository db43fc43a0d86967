"""Tensor views of the states in the blocks of an arena (see ``aegaeon.core.kv_shape``)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from aegaeon.core.kv_shape import STATE_TOKENS_BYTES, KvShape, LayerState

_TOKENS = LayerState(0, False, 0, (1,), "int64", STATE_TOKENS_BYTES)


class StateRows:
    """A state tensor in every block of an arena. ``step_bytes``: how far apart blocks may lie, at least."""

    def __init__(self, memory: Tensor, offset: int, state: LayerState, step_bytes: int) -> None:
        dtype, width = getattr(torch, state.dtype), math.prod(state.shape)
        if any(size % dtype.itemsize for size in (step_bytes, offset, memory.storage_offset())):
            raise ValueError(f"states of {dtype} are not aligned in slabs {step_bytes} bytes apart")
        elements = memory[: memory.numel() // dtype.itemsize * dtype.itemsize].view(dtype)
        first, step = offset // dtype.itemsize, step_bytes // dtype.itemsize
        rows = max(0, (elements.numel() - first - width) // step + 1)
        self._rows = elements.as_strided((rows, width), (step, 1), elements.storage_offset() + first)
        self._shape = state.shape

    def gather(self, blocks: Tensor) -> Tensor:
        """A copy of the states of blocks ``[B]``: ``[B, ...]``."""
        return self._rows.index_select(0, blocks).view(-1, *self._shape)

    def zeros(self, blocks: Tensor) -> Tensor:
        """As ``gather``, of sequences that have no token yet."""
        return self._rows.new_zeros((len(blocks), *self._shape))

    def scatter(self, blocks: Tensor, states: Tensor) -> None:
        """Write the states of blocks."""
        self._rows.index_copy_(0, blocks, states.reshape(len(blocks), -1).to(self._rows.dtype))


class BlockStates:
    """All states of the blocks of an arena, for blocks in units of ``unit_bytes``."""

    def __init__(self, memory: Tensor, slab_bytes: int, shape: KvShape, unit_bytes: int) -> None:
        step_bytes = math.gcd(slab_bytes, shape.block_bytes)
        self._units = step_bytes // unit_bytes
        self._rows = [
            StateRows(memory, offset, state, step_bytes)
            for offset, state in zip(shape.state_offsets, shape.states, strict=False)
        ]
        self._tokens = StateRows(memory, shape.content_bytes, _TOKENS, step_bytes)

    def read(self, blocks: Tensor) -> list[Tensor]:
        """The states in blocks ``[B]``: ``[B, ...]`` each."""
        return [rows.gather(blocks // self._units) for rows in self._rows]

    def fresh(self, blocks: Tensor) -> list[Tensor]:
        """As ``read``, of sequences that have no token yet."""
        return [rows.zeros(blocks) for rows in self._rows]

    def write(self, blocks: Tensor, states: Sequence[Tensor], tokens: Tensor) -> None:
        """Put states of ``tokens`` ``[B]`` tokens into blocks. Who ends in the middle of it leaves no number."""
        places = blocks // self._units
        self._tokens.scatter(places, torch.zeros_like(tokens))
        for rows, state in zip(self._rows, states, strict=True):
            rows.scatter(places, state)
        self._tokens.scatter(places, tokens)


def state_tokens(memory: Tensor, shape: KvShape, block: int) -> int:
    """Of how many tokens the state in a block is, in host memory; 0 where there is none."""
    return int.from_bytes(_number(memory, shape, block).numpy().tobytes(), "little")


def set_state_tokens(memory: Tensor, shape: KvShape, block: int, tokens: int) -> None:
    """The state in a block, in host memory, is whole, and of so many tokens."""
    _number(memory, shape, block).copy_(torch.tensor([tokens]).view(torch.uint8))


def usable_tokens(memory: Tensor, shape: KvShape, blocks: Sequence[int], tokens: int) -> int:
    """From how many of a sequence's first ``tokens`` tokens one can go on: the most that there is a state of."""
    while shape.states and tokens and state_tokens(memory, shape, blocks[(tokens - 1) // shape.block_tokens]) != tokens:
        tokens = (tokens - 1) // shape.block_tokens * shape.block_tokens
    return tokens


def _number(memory: Tensor, shape: KvShape, block: int) -> Tensor:
    return memory[block + shape.content_bytes : block + shape.block_bytes]
