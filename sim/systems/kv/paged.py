"""vLLM's block manager (PagedAttention, SOSP 2023): blocks when they are written to, shared until they are."""

from __future__ import annotations

from aegaeon.core.kv_shape import KvShape
from aegaeon.memory.slab_ledger import SlabLedger
from sim.systems.kv.forked_tables import ForkedTables
from sim.systems.kv.group import Forks, SequenceGroup

WATERMARK = 0.01  # of all blocks: kept back when somebody is admitted or comes back
MAX_SEQUENCES = 2048


class PagedKv:
    """Blocks of a device, and of the host where groups are swapped out to; each a ledger of one slab.

    A block has tokens of one sequence, or of several with the same past. Places of last blocks that nobody has written
    to yet are counted, the rest are tokens.
    """

    max_sequences = MAX_SEQUENCES
    useless_tokens = 0

    def __init__(self, shape: KvShape, blocks: int, host_blocks: int) -> None:
        self.block_tokens = shape.block_tokens
        self.blocks = blocks
        self.host_blocks = host_blocks
        self._shape = shape
        self._device, self._host = _pool(shape, blocks), _pool(shape, host_blocks)
        self._watermark = int(WATERMARK * blocks)
        self._tables: dict[SequenceGroup, ForkedTables] = {}
        self._unwritten = 0

    @property
    def used_blocks(self) -> int:
        return self._device.live_blocks

    @property
    def used_host_blocks(self) -> int:
        """Blocks of groups that are swapped out."""
        return self._host.live_blocks

    @property
    def spare_blocks(self) -> int:
        return self._device.available(self._shape)

    @property
    def tokens(self) -> int:
        return self.used_blocks * self.block_tokens - self._unwritten

    def fits(self, group: SequenceGroup, tokens: int) -> bool:
        return self._has(self._shape.blocks_for(tokens))

    def admit(self, group: SequenceGroup, tokens: int) -> None:
        blocks = self._shape.blocks_for(tokens)
        self._device.take(self._shape, blocks)
        self._tables[group] = ForkedTables(group.sequences, blocks)
        self._unwritten += self._rest(tokens)

    def missing_blocks(self, group: SequenceGroup, tokens: int) -> int:
        return self._tables[group].missing(self._begins_block(tokens))

    def grow(self, group: SequenceGroup, tokens: int) -> None:
        tables, begins_block = self._tables[group], self._begins_block(tokens)
        ends = tables.ends
        self._device.take(self._shape, tables.grow(begins_block))
        if begins_block:
            self._unwritten += tables.ends * self.block_tokens
        else:
            self._unwritten += (tables.ends - ends) * self._rest(tokens - 1)

    def write(self, sequences: int) -> None:
        self._unwritten -= sequences

    def fork(self, group: SequenceGroup, forks: Forks) -> None:
        self._give_back(self._device, self._tables[group].fork(forks))

    def release(self, group: SequenceGroup, tokens: int) -> None:
        tables = self._tables.pop(group)
        self._give_back(self._device, tables.blocks)
        self._unwritten -= tables.ends * self._rest(tokens)

    # --- swapping

    def swap_out(self, group: SequenceGroup, tokens: int) -> int:
        """Move a group to the host; returns how many blocks. Raises ``OutOfSlabsError`` where they do not fit."""
        tables = self._tables[group]
        self._host.take(self._shape, tables.blocks)
        self._give_back(self._device, tables.blocks)
        self._unwritten -= tables.ends * self._rest(tokens)
        return tables.blocks

    def fits_again(self, group: SequenceGroup) -> bool:
        """Whether a group may come back now, and write a token of each sequence to another block."""
        return self._has(self._tables[group].blocks + group.sequences)

    def swap_in(self, group: SequenceGroup, tokens: int) -> int:
        """Move a group back to the device; returns how many blocks."""
        tables = self._tables[group]
        self._device.take(self._shape, tables.blocks)
        self._give_back(self._host, tables.blocks)
        self._unwritten += tables.ends * self._rest(tokens)
        return tables.blocks

    def _has(self, blocks: int) -> bool:
        return self.spare_blocks - blocks >= self._watermark

    def _rest(self, tokens: int) -> int:
        """Places that so many tokens leave unwritten in their last block."""
        return -tokens % self.block_tokens

    def _begins_block(self, tokens: int) -> bool:
        return tokens % self.block_tokens == 1 or self.block_tokens == 1

    @staticmethod
    def _give_back(pool: SlabLedger, blocks: int) -> None:
        if blocks:
            pool.give_back(((0, blocks),))


def _pool(shape: KvShape, blocks: int) -> SlabLedger:
    pool = SlabLedger(blocks * shape.block_bytes, blocks * shape.block_bytes)
    pool.register(shape)
    return pool
