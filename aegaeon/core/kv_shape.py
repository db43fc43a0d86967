"""The geometry of a model's KV cache block.

A block holds ``block_tokens`` tokens of *all* layers, so that moving it is one copy::

    block:  | layer 0: K | layer 0: V | layer 1: K | layer 1: V | ...
             K of a layer: [kv_heads, block_tokens, key_size], V: [kv_heads, block_tokens, value_size]
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate


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
class KvShape:
    """The shape that a slab's blocks have; slabs serve one shape at a time."""

    layers: tuple[LayerKv, ...]
    element_bytes: int = 2
    block_tokens: int = 16

    def __post_init__(self) -> None:
        if not self.layers or self.element_bytes < 1 or self.block_tokens < 1:
            raise ValueError(f"a KV shape needs layers, an element size and a block size: {self}")

    @property
    def token_bytes(self) -> int:
        """KV bytes of one token over all layers."""
        return sum(layer.elements for layer in self.layers) * self.element_bytes

    @property
    def block_bytes(self) -> int:
        """Bytes of one block."""
        return self.token_bytes * self.block_tokens

    @property
    def layer_offsets(self) -> tuple[int, ...]:
        """Element offset of each layer's keys within a block."""
        sizes = (layer.elements * self.block_tokens for layer in self.layers)
        return tuple(accumulate(sizes, initial=0))[:-1]

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
        first = self.layers[0]
        if any(layer != first for layer in self.layers):
            return f"{len(self.layers)}x(mixed)"
        if first.key_size != first.value_size:
            return f"{len(self.layers)}x({self.block_tokens},{first.kv_heads},{first.key_size}+{first.value_size})"
        return f"{len(self.layers)}x(2,{self.block_tokens},{first.kv_heads},{first.key_size})"
