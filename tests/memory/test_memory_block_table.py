"""Block tables: growth, naming, sharing, what is kept; against a naive model that knows what was written where."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aegaeon.core.kv_shape import KvShape, LayerKv
from aegaeon.memory.block_table import BlockTables, LeftBlock
from aegaeon.memory.errors import LedgerError
from aegaeon.memory.eviction import Lru
from aegaeon.memory.prefix_tree import PrefixTree
from aegaeon.memory.slab_cache import SlabCache
from aegaeon.memory.slab_ledger import OutOfSlabsError

SHAPE = KvShape((LayerKv(1, 2, 3),) * 2, element_bytes=1, block_tokens=4)  # 40 bytes a block
OTHER = KvShape((LayerKv(1, 1, 1),), element_bytes=1, block_tokens=4)  # 8 bytes a block
ROOT = b"root"


def tables_of(slabs: int) -> tuple[SlabCache, PrefixTree, BlockTables]:
    cache, tree = SlabCache(slabs * 100, 100), PrefixTree(Lru())
    cache.register(SHAPE)
    cache.register(OTHER)
    return cache, tree, BlockTables(cache, tree)


def test_a_table_grows_by_whole_blocks_and_only_when_it_must() -> None:
    _, _, tables = tables_of(2)
    tables.add("r", SHAPE)
    assert tables.blocks("r") == ()
    assert tables.grow("r", 5) == (0, 40)
    assert tables.grow("r", 8) == ()
    assert tables.missing_blocks("r", 9) == 1
    assert tables.grow("r", 9) == (100,)
    assert tables.blocks("r") == (0, 40, 100)
    assert tables.capacity_tokens("r") == 12
    assert tables.shape("r") == SHAPE


def test_a_truncated_table_keeps_what_its_tokens_need() -> None:
    cache, _, tables = tables_of(2)
    tables.add("r", SHAPE)
    tables.grow("r", 12)
    assert tables.truncate("r", 100) == 12
    assert tables.truncate("r", 5) == 5
    assert tables.blocks("r") == (0, 40)
    assert cache.live_blocks == 2
    assert tables.truncate("r", 0) == 0
    assert "r" in tables
    assert cache.free_bytes == cache.total_bytes


def test_named_blocks_are_shared_and_kept() -> None:
    cache, tree, tables = tables_of(2)
    tables.add("first", SHAPE, ROOT)
    tables.grow("first", 9)
    for name in (b"a", b"b"):
        node = tables.name("first", name)
        assert node is not None
    assert [node.block for node in tables.named("first")] == [0, 40]
    tables.release("first")
    assert (cache.live_blocks, tables.kept_bytes) == (2, 80)
    tables.add("second", SHAPE, ROOT, tree.find(ROOT, (b"a", b"b", b"c")))
    assert tables.blocks("second") == (0, 40)
    assert tables.kept_bytes == 0
    tables.check_integrity()
    assert tables.evict() is None
    tables.release("second")
    assert [tables.evict(), tables.evict(), tables.evict()] == [40, 0, None]
    assert cache.free_bytes == cache.total_bytes


def test_two_that_compute_the_same_each_have_their_own_and_what_follows_is_found() -> None:
    cache, tree, tables = tables_of(3)
    for name in ("first", "second"):
        tables.add(name, SHAPE, ROOT)
        tables.grow(name, 8)
        tables.name(name, b"a")
    tables.name("second", b"b")
    assert tables.blocks("second") == (100, 140)
    assert [node.block for node in tables.named("second")] == [0, 140]
    tables.check_integrity()
    tables.release("first")
    tables.release("second")
    assert [node.block for node in tree.find(ROOT, (b"a", b"b"))] == [0, 140]
    assert cache.live_blocks == 2
    tables.check_integrity()


def test_a_name_of_something_else_is_refused() -> None:
    _, _, tables = tables_of(3)
    for request, root in (("first", ROOT), ("second", b"another")):
        tables.add(request, SHAPE, root)
        tables.grow(request, 4)
    assert tables.name("first", b"a") is not None
    assert tables.name("second", b"a") is None
    assert list(tables.named("second")) == []
    tables.check_integrity()


def test_a_named_block_is_never_written_to_again() -> None:
    _, tree, tables = tables_of(3)
    tables.add("r", SHAPE, ROOT)
    tables.grow("r", 10)
    tables.name("r", b"a")
    tables.name("r", b"b")
    assert tables.truncate("r", 9) == 9  # the third is its own
    assert tables.truncate("r", 6) == 4  # the second is not
    assert tables.blocks("r") == (0,)
    assert len(tree.find(ROOT, (b"a", b"b"))) == 2
    assert tables.grow("r", 6) != (40,)
    tables.check_integrity()


def test_exhaustion_changes_nothing() -> None:
    cache, _, tables = tables_of(1)
    tables.add("r", SHAPE)
    tables.grow("r", 8)
    with pytest.raises(OutOfSlabsError):
        tables.grow("r", 9)
    assert tables.blocks("r") == (0, 40)
    assert cache.live_blocks == 2
    tables.check_integrity()


def test_misuse_is_refused() -> None:
    _, _, tables = tables_of(1)
    tables.add("r", SHAPE)
    tables.grow("r", 4)
    with pytest.raises(LedgerError, match="has a block table already"):
        tables.add("r", SHAPE)
    with pytest.raises(LedgerError, match="cut to -1"):
        tables.truncate("r", -1)
    tables.name("r", b"a")
    with pytest.raises(LedgerError, match="no block left to name"):
        tables.name("r", b"b")
    for call in (tables.blocks, tables.release, tables.shape, tables.named):
        with pytest.raises(LedgerError, match="ghost has no block table"):
            call("ghost")


def test_a_block_that_nobody_has_is_found() -> None:
    cache, _, tables = tables_of(1)
    cache.allocate(SHAPE, 1)
    with pytest.raises(LedgerError, match="1 blocks are live, 0 are owned"):
        tables.check_integrity()


def test_a_block_freed_behind_the_tables_back_is_found() -> None:
    cache, _, tables = tables_of(1)
    tables.add("r", SHAPE)
    tables.grow("r", 8)
    cache.free((40,))
    with pytest.raises(LedgerError, match=r"request r has free blocks \[40\]"):
        tables.check_integrity()


def test_a_block_held_behind_the_tables_back_is_found() -> None:
    _, tree, tables = tables_of(1)
    tables.add("r", SHAPE, ROOT)
    tables.grow("r", 4)
    node = tables.name("r", b"a")
    assert node is not None
    tree.hold(node)
    with pytest.raises(LedgerError, match=r"wrong numbers of holders for blocks \[0\]"):
        tables.check_integrity()


def test_what_another_left_is_kept() -> None:
    cache, tree, tables = tables_of(3)
    left = {
        240: LeftBlock(SHAPE, b"a", ROOT),
        100: LeftBlock(OTHER, b"x", b"other"),
        148: LeftBlock(OTHER, b"y", 100),
    }
    tables.restore(left)
    assert (cache.live_blocks, tables.kept_bytes) == (3, 56)
    tables.check_integrity()
    tables.add("r", OTHER, b"other", tree.find(b"other", (b"x", b"y")))
    assert tables.blocks("r") == (100, 148)
    assert len(tables.grow("r", 12)) == 1
    tables.release("r")
    while tables.evict() is not None:
        tables.check_integrity()
    assert cache.free_bytes == cache.total_bytes


@pytest.mark.parametrize("left", [{0: SHAPE, 40: OTHER}, {20: SHAPE}, {300: SHAPE}, {-40: SHAPE}, {80: SHAPE}], ids=str)
def test_what_cannot_have_been_left_is_refused(left: dict[int, KvShape]) -> None:
    _, _, tables = tables_of(3)
    with pytest.raises(LedgerError):
        tables.restore(
            {block: LeftBlock(shape, bytes((index,)), ROOT) for index, (block, shape) in enumerate(left.items())}
        )


def test_only_an_unused_cache_takes_what_another_left() -> None:
    _, _, tables = tables_of(3)
    tables.add("r", SHAPE)
    tables.grow("r", 1)
    with pytest.raises(LedgerError, match="in use"):
        tables.restore({100: LeftBlock(SHAPE, b"a", ROOT)})


class BlockTablesMachine(RuleBasedStateMachine):
    """Requests with tokens find blocks, write to their own, name them, go back and go.

    ``memory`` plays the arena: all tokens up to the end of what was written to a block. What a request reads through
    its table must be its own tokens, whoever shares blocks with it.
    """

    SLABS = 5

    @initialize()
    def start(self) -> None:
        self.cache, self.tree, self.tables = tables_of(self.SLABS)
        self.memory: dict[int, str] = {}
        self.texts: dict[str, str] = {}
        self.safe: dict[str, int] = {}
        self.count = 0

    def _pick(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(sorted(self.texts)))

    def _names(self, request: str) -> list[bytes]:
        shape, text = self.tables.shape(request), self.texts[request]
        return [f"{shape.block_bytes} {text[:end]}".encode() for end in range(4, len(text) + 1, 4)]

    @rule(kv_shape=st.sampled_from((SHAPE, OTHER)), text=st.text("ab", min_size=1, max_size=20))
    def add(self, kv_shape: KvShape, text: str) -> None:
        request = f"r{self.count}"
        self.count += 1
        names = [f"{kv_shape.block_bytes} {text[:end]}".encode() for end in range(4, len(text) + 1, 4)]
        found = self.tree.find(ROOT, names)
        self.tables.add(request, kv_shape, ROOT, found)
        self.texts[request], self.safe[request] = text, 4 * len(found)

    @precondition(lambda self: self.texts)
    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        request = self._pick(data)
        text, shape = self.texts[request], self.tables.shape(request)
        missing = self.tables.missing_blocks(request, len(text))
        while not self.cache.can_allocate(shape, missing) and self.tables.evict() is not None:
            pass
        if not self.cache.can_allocate(shape, missing):
            with pytest.raises(OutOfSlabsError):
                self.tables.grow(request, len(text))
            return
        assert len(self.tables.grow(request, len(text))) == missing
        blocks = self.tables.blocks(request)
        for index in range(self.safe[request] // 4, len(blocks)):
            self.memory[blocks[index]] = text[: 4 * index + 4]
        self.safe[request] = len(text)

    @precondition(lambda self: self.texts)
    @rule(data=st.data())
    def name(self, data: st.DataObject) -> None:
        request = self._pick(data)
        first = len(self.tables.named(request))
        for name in self._names(request)[first : self.safe[request] // 4]:
            assert self.tables.name(request, name) is not None

    @precondition(lambda self: self.texts)
    @rule(data=st.data(), more=st.text("ab", max_size=4))
    def go_back(self, data: st.DataObject, more: str) -> None:
        request = self._pick(data)
        tokens = data.draw(st.integers(0, self.safe[request]))
        self.safe[request] = self.tables.truncate(request, tokens)
        self.texts[request] = self.texts[request][:tokens] + more

    @precondition(lambda self: self.texts)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        request = self._pick(data)
        self.tables.release(request)
        del self.texts[request], self.safe[request]

    @invariant()
    def every_request_reads_what_it_wrote(self) -> None:
        if not hasattr(self, "tables"):
            return
        self.tables.check_integrity()
        for request, safe in self.safe.items():
            blocks = self.tables.blocks(request)
            for index in range(-(-safe // 4)):
                end = min(4 * index + 4, safe)
                assert self.memory[blocks[index]][:end] == self.texts[request][:end]

    @invariant()
    def what_is_found_is_what_was_written(self) -> None:
        for node in self.tree if hasattr(self, "tree") else ():
            assert self.memory[node.block].encode() == node.name.split(b" ")[1]

    def teardown(self) -> None:
        if hasattr(self, "tables"):
            for request in self.texts:
                self.tables.release(request)
            assert self.tables.kept_bytes == self.cache.used_bytes
            while self.tables.evict() is not None:
                pass
            self.tables.check_integrity()
            assert self.cache.free_bytes == self.cache.total_bytes
            assert len(self.tables) == 0


TestBlockTables = BlockTablesMachine.TestCase
TestBlockTables.settings = settings(max_examples=100, stateful_step_count=50, deadline=None, derandomize=True)
