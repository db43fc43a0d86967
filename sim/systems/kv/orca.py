"""The Orca baselines of vLLM's paper: a reservation for every sequence, made once, of the longest that it may become.

They differ in what they know of the output: its length (oracle), the power of two above it, or nothing (the most that
there can be).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from sim.systems.kv.buddy import BuddyPool
from sim.systems.kv.group import Forks, SequenceGroup

MOST_TOKENS = 2048  # of a sequence
MAX_SEQUENCES = 256

ESTIMATES: Mapping[str, Callable[[int], int]] = MappingProxyType(
    {
        "oracle": lambda output_tokens: output_tokens,
        "power2": lambda output_tokens: 1 << (output_tokens - 1).bit_length(),
        "constant": lambda _: MOST_TOKENS,
    }
)
"""Output tokens that are reserved, by how a baseline estimates them."""


class OrcaKv:
    """Runs of blocks from a buddy allocator. Nothing is shared, and nobody has to leave before the end."""

    max_sequences = MAX_SEQUENCES

    def __init__(self, block_tokens: int, blocks: int, estimate: str) -> None:
        self.block_tokens = block_tokens
        self.blocks = blocks
        self.tokens = 0
        self.useless_tokens = 0
        self._estimate = ESTIMATES[estimate]
        self._pool = BuddyPool(blocks, _order(MOST_TOKENS, block_tokens))
        self._runs: dict[SequenceGroup, tuple[int, list[int]]] = {}

    @property
    def used_blocks(self) -> int:
        return self._pool.used_blocks

    @property
    def spare_blocks(self) -> int:
        """A sequence has all that it will need."""
        return self.blocks * self.block_tokens

    def fits(self, group: SequenceGroup, tokens: int) -> bool:
        return self._pool.has(_order(self._reserved(group), self.block_tokens), group.sequences)

    def admit(self, group: SequenceGroup, tokens: int) -> None:
        order = _order(self._reserved(group), self.block_tokens)
        self._runs[group] = order, [self._pool.take(order) for _ in range(group.sequences)]
        self.tokens += group.sequences * tokens
        self.useless_tokens += self._useless(group)

    def missing_blocks(self, group: SequenceGroup, tokens: int) -> int:
        return 0

    def grow(self, group: SequenceGroup, tokens: int) -> None:
        """All blocks are there already."""

    def write(self, sequences: int) -> None:
        self.tokens += sequences

    def fork(self, group: SequenceGroup, forks: Forks) -> None:
        """What is taken over is copied into the blocks that are there already."""

    def release(self, group: SequenceGroup, tokens: int) -> None:
        order, runs = self._runs.pop(group)
        for start in runs:
            self._pool.give_back(start, order)
        self.tokens -= group.sequences * tokens
        self.useless_tokens -= self._useless(group)

    def _reserved(self, group: SequenceGroup) -> int:
        return min(group.prompt_tokens + self._estimate(group.output_tokens), MOST_TOKENS)

    def _useless(self, group: SequenceGroup) -> int:
        return group.sequences * (self._reserved(group) - group.prompt_tokens - group.output_tokens)


def _order(tokens: int, block_tokens: int) -> int:
    """Of the smallest run that so many tokens fit into."""
    return (-(-tokens // block_tokens) - 1).bit_length()
