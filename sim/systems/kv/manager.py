"""What an engine asks of whoever places its KV."""

from __future__ import annotations

from typing import Protocol

from sim.systems.kv.group import Forks, SequenceGroup


class KvManager(Protocol):
    """``tokens``: the length that each sequence of the group has, those that are about to be written among them."""

    block_tokens: int
    blocks: int
    max_sequences: int

    @property
    def used_blocks(self) -> int:
        """Blocks that somebody has, or has reserved."""

    @property
    def spare_blocks(self) -> int:
        """Blocks that running groups may still take; a group grows only where there is one for each sequence."""

    @property
    def tokens(self) -> int:
        """Tokens that lie in blocks, shared ones once."""

    @property
    def useless_tokens(self) -> int:
        """Places that were reserved for tokens that will never be."""

    def fits(self, group: SequenceGroup, tokens: int) -> bool:
        """Whether a group may be admitted now."""

    def admit(self, group: SequenceGroup, tokens: int) -> None:
        """Give blocks to the prompt of a group."""

    def missing_blocks(self, group: SequenceGroup, tokens: int) -> int:
        """Blocks that the sequences lack for one more token each."""

    def grow(self, group: SequenceGroup, tokens: int) -> None:
        """Give the sequences blocks of their own for one more token each."""

    def write(self, sequences: int) -> None:
        """So many sequences have one more token each in their blocks."""

    def fork(self, group: SequenceGroup, forks: Forks) -> None:
        """Sequences give up their past for another's."""

    def release(self, group: SequenceGroup, tokens: int) -> None:
        """Take all blocks of a group back."""
