"""Block tables: growth, sharing, copy on write; against a naive model that copies every block at once."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aegaeon.core.kv_shape import KvShape, LayerKv
from aegaeon.memory.block_table import BlockTables, CopyOrder
from aegaeon.memory.errors import LedgerError
from aegaeon.memory.slab_cache import SlabCache
from aegaeon.memory.slab_ledger import OutOfSlabsError

SHAPE = KvShape((LayerKv(1, 2, 3),) * 2, element_bytes=1, block_tokens=4)  # 40 bytes a block
OTHER = KvShape((LayerKv(1, 1, 1),), element_bytes=1, block_tokens=4)  # 8 bytes a block


def tables_of(slabs: int) -> tuple[SlabCache, BlockTables]:
    cache = SlabCache(slabs * 100, 100)
    cache.register(SHAPE)
    cache.register(OTHER)
    return cache, BlockTables(cache)


def test_a_table_grows_by_whole_blocks_and_only_when_it_must() -> None:
    _, tables = tables_of(2)
    tables.add("r", SHAPE)
    assert tables.blocks("r") == ()
    assert tables.grow("r", 5) == (0, 40)
    assert tables.grow("r", 8) == ()
    assert tables.grow("r", 9) == (100,)
    assert tables.blocks("r") == (0, 40, 100)
    assert tables.capacity_tokens("r") == 12
    assert tables.shape("r") == SHAPE


def test_a_truncated_table_keeps_what_its_tokens_need() -> None:
    cache, tables = tables_of(2)
    tables.add("r", SHAPE)
    tables.grow("r", 12)
    tables.truncate("r", 100)
    assert len(tables.blocks("r")) == 3
    tables.truncate("r", 5)
    assert tables.blocks("r") == (0, 40)
    assert cache.live_blocks == 2
    tables.truncate("r", 0)
    assert "r" in tables
    assert cache.free_bytes == cache.total_bytes


def test_a_fork_shares_blocks_until_one_side_writes() -> None:
    cache, tables = tables_of(2)
    tables.add("parent", SHAPE)
    tables.grow("parent", 6)
    tables.fork("parent", "child")
    assert tables.blocks("child") == (0, 40)
    assert cache.live_blocks == 2
    assert tables.write("child", 5) == CopyOrder(source=40, destination=100)
    assert tables.blocks("child") == (0, 100)
    assert tables.blocks("parent") == (0, 40)
    assert tables.write("child", 5) is None
    assert tables.write("parent", 5) is None
    assert (tables.holders(0), tables.holders(40), tables.holders(140)) == (2, 1, 0)
    tables.release("parent")
    assert cache.live_blocks == 2
    tables.release("child")
    assert cache.live_blocks == 0
    tables.check_integrity()


def test_a_copy_under_way_can_keep_blocks_alive() -> None:
    cache, tables = tables_of(1)
    tables.add("r", SHAPE)
    tables.grow("r", 8)
    tables.fork("r", "copy out")
    tables.release("r")
    assert not cache.can_allocate(SHAPE, 1)
    tables.release("copy out")
    assert cache.can_allocate(SHAPE, 2)


def test_exhaustion_changes_nothing() -> None:
    cache, tables = tables_of(1)
    tables.add("r", SHAPE)
    tables.grow("r", 8)
    with pytest.raises(OutOfSlabsError):
        tables.grow("r", 9)
    tables.fork("r", "s")
    with pytest.raises(OutOfSlabsError):
        tables.write("s", 0)
    assert tables.blocks("r") == tables.blocks("s") == (0, 40)
    assert cache.live_blocks == 2
    tables.check_integrity()


def test_misuse_is_refused() -> None:
    _, tables = tables_of(1)
    tables.add("r", SHAPE)
    tables.grow("r", 4)
    with pytest.raises(LedgerError, match="has a block table already"):
        tables.add("r", SHAPE)
    with pytest.raises(LedgerError, match="has a block table already"):
        tables.fork("r", "r")
    with pytest.raises(LedgerError, match="writes token 4, but has room for 4"):
        tables.write("r", 4)
    with pytest.raises(LedgerError, match="cut to -1"):
        tables.truncate("r", -1)
    for call in (tables.blocks, tables.release, tables.shape):
        with pytest.raises(LedgerError, match="ghost has no block table"):
            call("ghost")


def test_a_block_that_nobody_holds_is_found() -> None:
    cache, tables = tables_of(1)
    cache.allocate(SHAPE, 1)
    with pytest.raises(LedgerError, match="1 blocks are live, but 0 have a holder"):
        tables.check_integrity()


def test_a_block_freed_behind_the_tables_back_is_found() -> None:
    cache, tables = tables_of(1)
    tables.add("r", SHAPE)
    tables.grow("r", 8)
    cache.free((40,))
    with pytest.raises(LedgerError, match=r"request r holds free blocks \[40\]"):
        tables.check_integrity()


def test_what_another_left_is_kept_until_it_is_adopted_or_dropped() -> None:
    cache, tables = tables_of(3)
    tables.restore({240: SHAPE, 100: OTHER, 148: OTHER})
    assert (cache.live_blocks, tables.kept_bytes) == (3, 56)
    tables.check_integrity()
    tables.add("r", OTHER)
    tables.adopt("r", [148])
    assert tables.blocks("r") == (148,)
    assert len(tables.grow("r", 8)) == 1
    tables.check_integrity()
    for blocks in ([148], [240], [100, 100]):
        with pytest.raises(LedgerError, match="cannot adopt"):
            tables.adopt("r", blocks)
    tables.drop_kept()
    tables.release("r")
    tables.check_integrity()
    assert cache.free_bytes == cache.total_bytes


@pytest.mark.parametrize("left", [{0: SHAPE, 40: OTHER}, {20: SHAPE}, {300: SHAPE}, {-40: SHAPE}, {80: SHAPE}], ids=str)
def test_what_cannot_have_been_left_is_refused(left: dict[int, KvShape]) -> None:
    _, tables = tables_of(3)
    with pytest.raises(LedgerError):
        tables.restore(left)


def test_only_an_unused_cache_takes_what_another_left() -> None:
    _, tables = tables_of(3)
    tables.add("r", SHAPE)
    tables.grow("r", 1)
    with pytest.raises(LedgerError, match="in use"):
        tables.restore({100: SHAPE})


class BlockTablesMachine(RuleBasedStateMachine):
    """Requests write tokens through their tables; the model gives every request an array of its own.

    ``memory`` plays the arena: bytes by (block, token in block). What a request reads through its table must be what
    its own array says, whoever shares blocks with it.
    """

    SLABS = 5

    @initialize()
    def start(self) -> None:
        self.cache, self.tables = tables_of(self.SLABS)
        self.memory: dict[tuple[int, int], int] = {}
        self.written: dict[str, dict[int, int]] = {}
        self.shapes: dict[str, KvShape] = {}
        self.names = 0
        self.stamp = 0

    def _new_name(self) -> str:
        self.names += 1
        return f"r{self.names}"

    def _pick(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(sorted(self.written)))

    @rule(kv_shape=st.sampled_from((SHAPE, OTHER)))
    def add(self, kv_shape: KvShape) -> None:
        name = self._new_name()
        self.tables.add(name, kv_shape)
        self.written[name], self.shapes[name] = {}, kv_shape

    @precondition(lambda self: self.written)
    @rule(data=st.data(), tokens=st.integers(0, 30))
    def grow(self, data: st.DataObject, tokens: int) -> None:
        name = self._pick(data)
        before = self.tables.blocks(name)
        missing = max(0, -(-tokens // 4) - len(before))
        if missing > self.cache.available(self.shapes[name]):
            with pytest.raises(OutOfSlabsError):
                self.tables.grow(name, tokens)
            assert self.tables.blocks(name) == before
        else:
            added = self.tables.grow(name, tokens)
            assert len(added) == missing
            assert self.tables.blocks(name) == before + added

    @precondition(lambda self: self.written)
    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        name = self._pick(data)
        room = self.tables.capacity_tokens(name)
        if not room:
            return
        position = data.draw(st.integers(0, room - 1))
        shared = self.tables.holders(self.tables.blocks(name)[position // 4]) > 1
        if shared and not self.cache.can_allocate(self.shapes[name], 1):
            with pytest.raises(OutOfSlabsError):
                self.tables.write(name, position)
            return
        order = self.tables.write(name, position)
        assert (order is not None) == shared
        if order is not None:
            for token in range(4):
                self.memory[order.destination, token] = self.memory.get((order.source, token), -1)
        self.stamp += 1
        self.memory[self.tables.blocks(name)[position // 4], position % 4] = self.stamp
        self.written[name][position] = self.stamp

    @precondition(lambda self: self.written)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        name, child = self._pick(data), self._new_name()
        self.tables.fork(name, child)
        self.written[child], self.shapes[child] = dict(self.written[name]), self.shapes[name]

    @precondition(lambda self: self.written)
    @rule(data=st.data(), tokens=st.integers(0, 30))
    def truncate(self, data: st.DataObject, tokens: int) -> None:
        name = self._pick(data)
        self.tables.truncate(name, tokens)
        room = self.tables.capacity_tokens(name)
        self.written[name] = {position: stamp for position, stamp in self.written[name].items() if position < room}

    @precondition(lambda self: self.written)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        name = self._pick(data)
        self.tables.release(name)
        del self.written[name], self.shapes[name]

    @invariant()
    def every_request_reads_what_it_wrote(self) -> None:
        self.tables.check_integrity()
        for name, written in self.written.items():
            blocks = self.tables.blocks(name)
            for position, stamp in written.items():
                assert self.memory[blocks[position // 4], position % 4] == stamp

    @invariant()
    def no_block_is_held_and_free(self) -> None:
        assert set(self.tables.request_ids) == set(self.written)
        held = {block for name in self.written for block in self.tables.blocks(name)}
        assert len(held) == self.cache.live_blocks

    def teardown(self) -> None:
        if hasattr(self, "tables"):
            for name in self.written:
                self.tables.release(name)
            self.tables.check_integrity()
            assert self.cache.free_bytes == self.cache.total_bytes
            assert len(self.tables) == 0


TestBlockTables = BlockTablesMachine.TestCase
TestBlockTables.settings = settings(max_examples=60, stateful_step_count=50, deadline=None, derandomize=True)
