"""A disk for KV that a test plays: what it is given to do is done piece by piece, when the test says so."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from aegaeon.memory.stored_block import StoredBlock
from aegaeon.runtime.node.core import driver_inputs as i
from aegaeon.runtime.node.core import driver_outputs as o
from aegaeon.runtime.node.kv_disk import DiskOutput

Content = list[int | None]
Files = dict[bytes, tuple[StoredBlock, Content | None]]
"""By name: what it is, and what was in the block; None: damaged."""


class PlayedDisk:
    """``memory``: what is where in the slab cache, by block and place in it, which others write to meanwhile."""

    def __init__(
        self,
        memory: dict[tuple[int, int], int],
        block_tokens: int,
        tell: Callable[[i.DriverInput], None],
        files: Files,
    ) -> None:
        self._memory = memory
        self._places = range(block_tokens)
        self._tell = tell
        self.files = files
        self.full = False
        self._queues: tuple[deque[DiskOutput], deque[DiskOutput]] = deque(), deque()
        self._under_way: list[Iterator[None] | None] = [None, None]
        self._copies: list[tuple[StoredBlock, Content]] = []
        self.read_blocks = 0

    def open(self) -> None:
        """The folder can be used."""
        self._tell(i.KvFound(tuple((name, block.file_bytes) for name, (block, _) in self.files.items())))

    def do(self, output: DiskOutput) -> None:
        self._queues[isinstance(output, o.ReadKv)].append(output)

    def go_on(self, number: int) -> bool:
        """One of its two threads comes a piece further; False where it has nothing to do."""
        thread = number % 2
        work = self._under_way[thread]
        if work is None:
            if not self._queues[thread]:
                return False
            work = self._under_way[thread] = self._work(self._queues[thread].popleft())
        if next(work, self) is self:
            self._under_way[thread] = None
        return True

    def settle(self) -> None:
        """Do everything."""
        while self.go_on(0) or self.go_on(1):
            pass

    def damage(self, number: int) -> None:
        """A file is changed by somebody, or removed."""
        if self.files:
            name = list(self.files)[number % len(self.files)]
            self.files[name] = (self.files[name][0], None)

    def _work(self, output: DiskOutput) -> Iterator[None]:
        match output:
            case o.CopyKv():
                self._copies = []
                for block in output.blocks:
                    content: Content = []
                    for place in self._places:
                        content.append(self._memory.get((block.offset, place)))
                        if place % 8 == 0:
                            yield
                    self._copies.append((block, content))
                self._tell(i.KvCopied())
            case o.WriteKv():
                yield from self._write(output)
            case o.RemoveKv():
                for name in output.names:
                    self.files.pop(name, None)
            case o.ReadKv():
                yield from self._read(output)

    def _write(self, output: o.WriteKv) -> Iterator[None]:
        written = []
        for block, content in self._copies:
            yield
            if block.name in output.names and not self.full:
                self.files[block.name] = block, content
                written.append(block.name)
        self._tell(i.KvWritten(tuple(written), "no space left" if self.full else ""))

    def _read(self, output: o.ReadKv) -> Iterator[None]:
        blocks = 0
        for block in output.blocks:
            yield
            stored, content = self.files.get(block.name, (block, None))
            if stored.header != block.header or content is None:
                self.files.pop(block.name, None)
                self._memory.update(((block.offset, place), -1) for place in self._places)
                break
            self._memory.update({(block.offset, place): token for place, token in enumerate(content) if token})
            blocks += 1
        self.read_blocks += blocks
        self._tell(i.KvRead(output.reading, blocks, 1e-6 * len(output.blocks)))
