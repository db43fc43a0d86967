"""The block tables of one request's sequences, which share blocks until they write to them."""

from __future__ import annotations

from sim.systems.kv.group import Forks


class ForkedTables:
    """Blocks are numbered within the request; one that several tables have is copied before one of them writes to it.

    ``ends``: last blocks that sequences have written to, 1 as long as there is only the prompt.
    """

    __slots__ = ("_holders", "_tables", "blocks", "ends")

    def __init__(self, sequences: int, blocks: int) -> None:
        self._tables = [list(range(blocks)) for _ in range(sequences)]
        self._holders = [sequences] * blocks  # by block: tables that have it
        self.blocks = blocks
        self.ends = 1

    def fork(self, forks: Forks) -> int:
        """Let sequences take over others' pasts; returns how many blocks nobody has any more."""
        return sum(self._take_over(self._tables[child], self._tables[parent]) for child, parent in forks)

    def _take_over(self, old: list[int], new: list[int]) -> int:
        common = len(new)
        while common and old[common - 1] != new[common - 1]:
            common -= 1
        freed = 0
        for block in old[common:]:
            self._holders[block] -= 1
            freed += not self._holders[block]
        for block in new[common:]:
            self._holders[block] += 1
        old[common:] = new[common:]
        self.blocks -= freed
        return freed

    def missing(self, begins_block: bool) -> int:
        """Blocks that it takes to let every sequence write one token to a block of its own."""
        if begins_block:
            return len(self._tables)
        return len(self._tables) - len({table[-1] for table in self._tables})

    def grow(self, begins_block: bool) -> int:
        """Let every sequence write to a last block of its own; returns how many were taken."""
        before = self.blocks
        for table in self._tables:
            if begins_block:
                table.append(self._new())
            elif self._holders[table[-1]] > 1:
                self._holders[table[-1]] -= 1
                table[-1] = self._new()
        self.ends = len(self._tables)
        return self.blocks - before

    def _new(self) -> int:
        self._holders.append(1)
        self.blocks += 1
        return len(self._holders) - 1
