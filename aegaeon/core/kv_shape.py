"""The geometry of a model's KV cache block.

A block holds ``block_tokens`` tokens of *all* layers, so that moving it is one copy::

    block:  | layer 0: K | layer 0: V | layer 1: K | layer 1: V | ... | states | state tokens |
             K of a layer: [kv_heads, block_tokens, key_size], V: [kv_heads, block_tokens, value_size]

Models with recurrent or convolution layers (hybrids) have ``states``: what these layers keep of all tokens so far. The
state after the last token that was written to a block lies in the block, with the number of tokens that it is of (8
bytes, 0 while it is being written): so a whole block holds all that whoever goes on after it needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from math import prod

STATE_TOKENS_BYTES = 8

_ALIGNED_BYTES = 8

_TOKENS_ONE_BY_ONE = 16
"""In a step of a sequence whose tokens can only be fed so."""


@dataclass(frozen=True, slots=True)
class LayerKv:
    """Keys and values of one attention layer, per token."""

    kv_heads: int
    key_size: int
    value_size: int

    def __post_init__(self) -> None:
        if min(self.kv_heads, self.key_size, self.value_size) < 1:
            raise ValueError(f"KV sizes must be positive: {self}")

    @property
    def elements(self) -> int:
        """Elements of keys and values of one token."""
        return self.kv_heads * (self.key_size + self.value_size)


@dataclass(frozen=True, slots=True)
class LayerState:
    """A tensor that a recurrent or convolution layer keeps of a sequence.

    It is the ``index``-th of the layer's ``convolution``, or of its recurrence. ``dtype`` is a name, such as
    ``float32``. ``resumes``: several tokens can be fed after it at once.
    """

    layer: int
    convolution: bool
    index: int
    shape: tuple[int, ...]
    dtype: str
    element_bytes: int
    resumes: bool = True

    def __post_init__(self) -> None:
        if min((*self.shape, self.element_bytes)) < 1:
            raise ValueError(f"sizes of a state must be positive: {self}")

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensor, up to where the next one begins."""
        return _aligned(prod(self.shape) * self.element_bytes)


@dataclass(frozen=True, slots=True)
class KvShape:
    """The shape that a slab's blocks have; slabs serve one shape at a time."""

    layers: tuple[LayerKv, ...]
    element_bytes: int = 2
    block_tokens: int = 16
    states: tuple[LayerState, ...] = ()

    def __post_init__(self) -> None:
        if not (self.layers or self.states) or self.element_bytes < 1 or self.block_tokens < 1:
            raise ValueError(f"a KV shape needs layers, an element size and a block size: {self}")

    @property
    def token_bytes(self) -> int:
        """KV bytes of one token over all layers."""
        return sum(layer.elements for layer in self.layers) * self.element_bytes

    @property
    def kv_bytes(self) -> int:
        """Bytes of the keys and values of one block."""
        return self.token_bytes * self.block_tokens

    @property
    def block_bytes(self) -> int:
        """Bytes of one block."""
        return self.content_bytes + STATE_TOKENS_BYTES if self.states else self.kv_bytes

    @property
    def aligned_bytes(self) -> int:
        """Blocks begin at multiples of it."""
        return _ALIGNED_BYTES if self.states else self.element_bytes

    @property
    def content_bytes(self) -> int:
        """Bytes of one block before the number of tokens that its state is of."""
        return self.state_offsets[-1]

    @property
    def state_offsets(self) -> tuple[int, ...]:
        """Byte offset of each state within a block, and where the last one ends."""
        sizes = (state.size_bytes for state in self.states)
        return tuple(accumulate(sizes, initial=_aligned(self.kv_bytes) if self.states else self.kv_bytes))

    @property
    def layer_offsets(self) -> tuple[int, ...]:
        """Element offset of each layer's keys within a block."""
        sizes = (layer.elements * self.block_tokens for layer in self.layers)
        return tuple(accumulate(sizes, initial=0))[:-1]

    @property
    def resumes(self) -> bool:
        """Whether several tokens of a sequence can be fed at once after others."""
        return all(state.resumes for state in self.states)

    def step_end(self, tokens: int) -> int | None:
        """Where a step of a sequence that has ``tokens`` tokens must end at the latest: each block gets its state."""
        if not self.states:
            return None
        end = (tokens // self.block_tokens + 1) * self.block_tokens
        return end if not tokens or self.resumes else min(end, tokens + _TOKENS_ONE_BY_ONE)

    def blocks_for(self, tokens: int) -> int:
        """Blocks that ``tokens`` tokens need."""
        return -(-tokens // self.block_tokens)

    def forked_tokens(self, shared_tokens: int, tokens: int, width: int) -> int:
        """Tokens that a table has room for with the blocks of ``width`` sequences of ``tokens`` tokens, which have the
        whole blocks of the first ``shared_tokens`` in common."""
        common = min(shared_tokens, tokens) // self.block_tokens
        return (common + width * (self.blocks_for(tokens) - common)) * self.block_tokens

    def bytes_for(self, tokens: int) -> int:
        """Bytes of the blocks that ``tokens`` tokens need."""
        return self.blocks_for(tokens) * self.block_bytes

    @property
    def label(self) -> str:
        """Short name for tables and figures, e.g. ``28x(2,16,4,128)``; ``mixed`` where layers differ."""
        if not self.layers:
            return f"{len(self.states)} states"
        first = self.layers[0]
        if any(layer != first for layer in self.layers):
            return f"{len(self.layers)}x(mixed)"
        if first.key_size != first.value_size:
            return f"{len(self.layers)}x({self.block_tokens},{first.kv_heads},{first.key_size}+{first.value_size})"
        return f"{len(self.layers)}x(2,{self.block_tokens},{first.kv_heads},{first.key_size})"


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // _ALIGNED_BYTES) * _ALIGNED_BYTES
