"""KV on disk: what of it is read for requests that come, and what of ended requests is written.

A request whose KV is on disk, and sooner read than computed, is announced to its scheduler when it is in host memory.
It waits for that no longer than computing would take: then it goes on without. What is read has a block table of its
own, so nothing that happens to the request meanwhile touches the blocks that are written to.

Blocks are copied, then written, a few at a time, and neither anybody who needs their room nor anybody else waits for
that: a copy of a block that was given up meanwhile is not written.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import assert_never

from aegaeon.core.kv_shape import KvShape
from aegaeon.core.model import ModelSpec
from aegaeon.memory.disk_index import DiskIndex
from aegaeon.memory.read_pace import ReadPace
from aegaeon.memory.slab_ledger import OutOfSlabsError
from aegaeon.memory.stored_block import StoredBlock
from aegaeon.memory.token_hash import packed
from aegaeon.runtime.node.core import driver_inputs as i
from aegaeon.runtime.node.core import driver_outputs as o
from aegaeon.runtime.node.core.blocks import Blocks, KvLedger
from aegaeon.runtime.node.core.desk import Desk
from aegaeon.runtime.node.core.driver_request import DriverRequest
from aegaeon.runtime.wire.messages import DiskCounts
from aegaeon.scheduler.prompt_cost import SavedS

_BATCH_BYTES = 8 << 20  # copied at a time
_MOST_LEAVING = 1 << 16  # blocks that wait to be written; more are written when somebody uses them again
_REST_S = 60.0  # after a write that failed
_READING_PART = 4  # of the slab cache, what is read at a time: nobody can have it meanwhile

logger = logging.getLogger(__name__)

DiskInput = i.KvFound | i.KvCopied | i.KvWritten | i.KvRead


@dataclass(frozen=True, slots=True)
class DiskTier:
    """What may be on disk, and what it is worth."""

    total_bytes: int
    saved_s: SavedS


@dataclass(frozen=True, slots=True)
class _Run:
    """Blocks on disk that follow on the ``first`` ones of a request, which are in host memory and held by the table
    ``key``. ``names``: of the block before them, and theirs."""

    model: str
    key: str
    shape: KvShape
    token_ids: Sequence[int]
    first: int
    names: Sequence[bytes]

    def __len__(self) -> int:
        return len(self.names) - 1

    def tokens(self, blocks: int) -> int:
        """Up to the end of so many of them."""
        return (self.first + blocks) * self.shape.block_tokens

    def blocks(self, offsets: Sequence[int]) -> tuple[StoredBlock, ...]:
        """As they are to be at these places of the slab cache."""
        tokens, size = packed(self.token_ids[self.tokens(0) : self.tokens(len(self))]), 4 * self.shape.block_tokens
        return tuple(
            StoredBlock(name, before, tokens[index * size : (index + 1) * size], offset, self.shape.block_bytes)
            for index, (before, name, offset) in enumerate(zip(self.names, self.names[1:], offsets, strict=False))
        )


@dataclass(frozen=True, slots=True)
class _Reading:
    """Blocks on their way; ``request_id``: for whom first."""

    request_id: str
    run: _Run
    blocks: tuple[StoredBlock, ...]


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A request that waits for a reading; ``arrive``: what it waits to do."""

    request: DriverRequest
    reading: int
    arrive: Callable[[], None]


class DiskKv:
    """Without a tier, or until its disk can be used (``KvFound``), nothing is read or written."""

    def __init__(
        self, desk: Desk, kv: KvLedger, models: Mapping[str, ModelSpec], blocks: Blocks, tier: DiskTier | None
    ) -> None:
        self._desk = desk
        self._kv = kv
        self._models = models
        self._blocks = blocks
        self._tier = tier
        self._index = DiskIndex(0 if tier is None else tier.total_bytes)
        self._usable = False
        self._pace = ReadPace()
        self._readings: dict[int, _Reading] = {}
        self._coming: dict[bytes, int] = {}  # the reading of each block that is being read
        self._waiting: dict[str, _Waiting] = {}
        self._leaving: dict[bytes, None] = {}  # to be written, in this order
        self._copies: list[StoredBlock] = []  # being copied, then written
        self._writes = self._rests = self._troubled = False
        self._last_reading = self._hits = self._read_tokens = self._read_bytes = self._written_bytes = 0

    def __contains__(self, request_id: object) -> bool:
        """Whether a request waits for what is read."""
        return request_id in self._waiting

    @property
    def tables(self) -> Collection[str]:
        """The keys of the block tables of what is being read."""
        return {reading.run.key for reading in self._readings.values()}

    @property
    def counts(self) -> DiskCounts | None:
        """What there is, and what was done."""
        if not self._usable:
            return None
        return DiskCounts(
            self._index.used_bytes,
            self._index.total_bytes,
            len(self._index),
            self._index.evicted_blocks,
            self._written_bytes,
            self._hits,
            self._read_tokens,
            self._read_bytes,
        )

    def take(self, message: DiskInput) -> None:
        """The disk has done something."""
        self._desk.changed = True
        match message:
            case i.KvFound():
                self._found(message)
            case i.KvCopied():
                self._copied()
            case i.KvWritten():
                self._written(message)
            case i.KvRead():
                self._read(message)
            case _:
                assert_never(message)

    def _found(self, message: i.KvFound) -> None:
        for name, size_bytes in message.files:
            self._index.add(name, size_bytes)
        self._make_room(0)
        self._usable = True

    def _make_room(self, size_bytes: int) -> None:
        gone = self._index.make_room(size_bytes)
        if gone:
            self._desk.put(o.RemoveKv(gone))

    # --- reading ----------------------------------------------------------------------------------------------------

    def fetch(self, request: DriverRequest, arrive: Callable[[], None]) -> None:
        """Have ``arrive`` called when of a request's KV all is in host memory that is worth waiting for: at once, or
        later, unless it is forgotten before."""
        awaited = self._look_up(request)
        if awaited is None:
            arrive()
            return
        reading, computing_s = awaited
        self._waiting[request.request_id] = _Waiting(request, reading, arrive)
        self._desk.timers.at(self._desk.now_s + computing_s, partial(self._go_without, request.request_id, reading))

    def forget(self, request_id: str) -> None:
        """A request is over; what is read for it is kept like any KV."""
        self._waiting.pop(request_id, None)

    def _go_without(self, request_id: str, reading: int) -> None:
        """Computing would have been done by now."""
        waiting = self._waiting.get(request_id)
        if waiting is not None and waiting.reading == reading:
            del self._waiting[request_id]
            logger.info("request %s goes on without its KV on disk, which takes too long to read", request_id)
            waiting.arrive()

    def _look_up(self, request: DriverRequest) -> tuple[int, float] | None:
        """The reading that a request is to wait for, and for how long; None where it is to wait for none."""
        if self._tier is None or not len(self._index) or request.model not in self._models:
            return None
        self._last_reading += 1
        run = self._run(request, f"{request.request_id} from disk {self._last_reading}")
        computing_s = self._tier.saved_s(run.model, run.tokens(0), run.tokens(len(run)))
        reading = self._coming.get(run.names[1]) if len(run) else None
        if len(run) and reading is None and self._pays(run, computing_s) and self._begin(request.request_id, run):
            return self._last_reading, computing_s
        self._kv.free(run.key)
        return None if reading is None else (reading, computing_s)

    def _run(self, request: DriverRequest, key: str) -> _Run:
        """What is on disk after what is in host memory, and leaves others enough of it; a table is opened for it."""
        shape, token_ids = self._models[request.model].kv_shape, request.token_ids(0, request.context_tokens)
        found = self._kv.open(key, request.model, shape, request.submit.names, token_ids)
        first, most = found // shape.block_tokens, (len(token_ids) - 1) // shape.block_tokens
        room_bytes = max(0, self._kv.counts.total_bytes // _READING_PART - self._reading_bytes)
        names = self._kv.names(key)[first : min(most, first + room_bytes // shape.block_bytes) + 1]
        return _Run(request.model, key, shape, token_ids, first, names[: 1 + self._index.run(names[1:])])

    @property
    def _reading_bytes(self) -> int:
        """What is being read."""
        return sum(block.size_bytes for reading in self._readings.values() for block in reading.blocks)

    def _pays(self, run: _Run, computing_s: float) -> bool:
        """Whether they are sooner read, after all that is being read."""
        size_bytes = len(run) * run.shape.block_bytes
        if self._pace.seconds(size_bytes) >= computing_s:
            self._pace.hope()
            return False
        return self._pace.seconds(self._reading_bytes + size_bytes) < computing_s

    def _begin(self, request_id: str, run: _Run) -> bool:
        """Read them; False where there is no room for them."""
        try:
            offsets = self._kv.extend(run.key, run.tokens(len(run)))
        except OutOfSlabsError:
            return False
        blocks = run.blocks(offsets)
        self._readings[self._last_reading] = _Reading(request_id, run, blocks)
        self._coming.update((block.name, self._last_reading) for block in blocks)
        self._desk.put(o.ReadKv(self._last_reading, blocks))
        return True

    def _read(self, message: i.KvRead) -> None:
        """What came is in the slab cache like any KV. Who waited for another's reading may want more than that."""
        reading = self._readings.pop(message.reading)
        run, blocks = reading.run, reading.blocks[: message.blocks]
        self._coming = {name: number for name, number in self._coming.items() if number != message.reading}
        self._count(run, blocks, message.took_s)
        for block in reading.blocks[message.blocks : message.blocks + 1]:
            self._index.remove(block.name)
        self._kv.note(run.key, lambda start, end: run.token_ids[start:end], run.tokens(len(blocks)))
        for one in [one for one in self._waiting.values() if one.reading == message.reading]:
            if self._waiting.pop(one.request.request_id, None) is not one:
                continue
            if one.request.request_id == reading.request_id:
                one.arrive()
            else:
                self.fetch(one.request, one.arrive)
        self._kv.free(run.key)
        self._blocks.feed_starved()

    def _count(self, run: _Run, blocks: Sequence[StoredBlock], took_s: float) -> None:
        if not blocks:
            return
        size_bytes = sum(block.size_bytes for block in blocks)
        self._pace.note(size_bytes, took_s)
        self._index.use([block.name for block in blocks])
        self._hits += 1
        self._read_tokens += len(blocks) * run.shape.block_tokens
        self._read_bytes += size_bytes

    # --- writing ----------------------------------------------------------------------------------------------------

    def leave(self, request: DriverRequest) -> None:
        """A request is about to lose its block table: what is whole of it is to be on disk, too."""
        if not self._usable or request.table_key not in self._kv:
            return
        names = self._kv.named(request.table_key)
        self._index.use(names)
        for name in names[: max(0, _MOST_LEAVING - len(self._leaving))]:
            if name not in self._index:
                self._leaving[name] = None
        self._copy()

    def _copy(self) -> None:
        """The next few, unless some are on their way."""
        if self._writes or self._rests:
            return
        size_bytes = 0
        while self._leaving and size_bytes < _BATCH_BYTES:
            name = next(iter(self._leaving))
            del self._leaving[name]
            block = None if name in self._index else self._kv.show(name)
            if block is not None:
                self._copies.append(block)
                size_bytes += block.file_bytes
        if size_bytes:
            self._writes = True
            self._desk.put(o.CopyKv(tuple(self._copies)))

    def _copied(self) -> None:
        copies, size_bytes = self._copies, 0
        self._copies = []
        for block in copies:
            if self._kv.hide(block) and size_bytes + block.file_bytes <= self._index.total_bytes:
                self._copies.append(block)
                size_bytes += block.file_bytes
        self._make_room(size_bytes)
        self._desk.put(o.WriteKv(tuple(block.name for block in self._copies)))

    def _written(self, message: i.KvWritten) -> None:
        blocks = {block.name: block for block in self._copies}
        for name in message.names:
            self._index.add(name, blocks[name].file_bytes)
            self._written_bytes += blocks[name].size_bytes
        self._index.use(message.names)
        self._copies, self._writes = [], False
        if message.problem:
            self._rest(message.problem)
        else:
            self._troubled = False
        self._copy()

    def _rest(self, problem: str) -> None:
        """Do not write for a while: what ails a disk takes its time."""
        if not self._troubled:
            logger.warning("cannot write KV to disk: %s; it is tried again every %.0f s", problem, _REST_S)
        self._rests = self._troubled = True
        self._desk.timers.at(self._desk.now_s + _REST_S, self._rested)

    def _rested(self) -> None:
        self._rests = False
        self._copy()
