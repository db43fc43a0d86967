"""Device pages and ranges: ownership, mapping arithmetic, and the ledger of both against a naive model."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aegaeon.memory.errors import LedgerError
from aegaeon.memory.ledger import DeviceLedger
from aegaeon.memory.page_pool import OutOfPagesError, PagePool
from aegaeon.memory.virtual_range import PageRun, VirtualRangeMap


def test_pages_are_given_lowest_first_and_counted() -> None:
    pool = PagePool(4, 4096)
    assert pool.allocate("a", 2) == (0, 1)
    assert pool.allocate("b", 1) == (2,)
    pool.free("a", (0,))
    assert pool.allocate("b", 2) == (0, 3)
    assert pool.owned("b") == (0, 2, 3)
    assert pool.free_bytes == 0
    assert pool.free_owner("b") == (0, 2, 3)
    assert pool.owners == ("a",)
    pool.check_integrity()


def test_running_out_of_pages_changes_nothing_and_says_how_many() -> None:
    pool = PagePool(3, 4096)
    pool.allocate("a", 2)
    with pytest.raises(OutOfPagesError, match=r"b needs 2 pages of 4096 bytes, but 1 of 3 are free") as caught:
        pool.allocate("b", 2)
    assert (caught.value.wanted_pages, caught.value.free_pages) == (2, 1)
    assert pool.free_pages == 1
    assert pool.owners == ("a",)


@pytest.mark.parametrize("pages", [(2,), (0, 0), (-1,), (0, 1, 2)])
def test_freeing_what_one_does_not_hold_is_refused_whole(pages: tuple[int, ...]) -> None:
    pool = PagePool(4, 4096)
    pool.allocate("a", 2)
    pool.allocate("b", 1)
    with pytest.raises(LedgerError, match="a frees pages"):
        pool.free("a", pages)
    assert pool.owned("a") == (0, 1)
    pool.check_integrity()


def test_a_pool_needs_sensible_sizes() -> None:
    with pytest.raises(ValueError, match="page size"):
        PagePool(1, 0)
    with pytest.raises(LedgerError, match="-1 pages"):
        PagePool(1, 1).allocate("a", -1)


def test_a_span_is_rounded_outward_to_pages() -> None:
    mapping = VirtualRangeMap(size_bytes=950, page_bytes=100)
    assert mapping.size_bytes == 1000
    assert mapping.holes(150, 100) == (1, 2)
    assert mapping.holes(150, 0) == ()
    assert mapping.map((1, 2, 4), (7, 3, 9)) == (PageRun(100, (7, 3)), PageRun(400, (9,)))
    assert mapping.pages == (7, 3, 9)
    assert mapping.holes(0, 1000) == (0, 3, 5, 6, 7, 8, 9)
    assert mapping.unmap(299, 200) == (PageRun(200, (3,)), PageRun(400, (9,)))
    assert mapping.mapped_bytes == 100


@pytest.mark.parametrize(
    ("positions", "pages"),
    [((1,), (5,)), ((0,), (7,)), ((10,), (5,)), ((-1,), (5,)), ((2, 3), (5, 5)), ((2, 2), (5, 6)), ((2, 3), (5,))],
)
def test_overlapping_maps_are_refused(positions: tuple[int, ...], pages: tuple[int, ...]) -> None:
    mapping = VirtualRangeMap(size_bytes=1000, page_bytes=100)
    mapping.map((1,), (7,))
    with pytest.raises(LedgerError, match="cannot map"):
        mapping.map(positions, pages)
    assert mapping.pages == (7,)


@pytest.mark.parametrize(("offset_bytes", "size_bytes"), [(-1, 1), (0, 1001), (1000, 1), (0, -1)])
def test_a_span_stays_inside_its_range(offset_bytes: int, size_bytes: int) -> None:
    with pytest.raises(LedgerError, match="leaves the range"):
        VirtualRangeMap(1000, 100).holes(offset_bytes, size_bytes)


def test_the_ledger_maps_only_what_is_missing() -> None:
    ledger = DeviceLedger(pages=4, page_bytes=100)
    assert ledger.reserve("llama", 350) == 400
    assert ledger.map("llama", 100, 50) == (PageRun(100, (0,)),)
    assert ledger.missing_bytes("llama", 0, 350) == 300
    assert ledger.map("llama", 0, 350) == (PageRun(0, (1,)), PageRun(200, (2, 3)))
    assert ledger.free_bytes == 0
    assert ledger.release("llama") == (PageRun(0, (1, 0, 2, 3)),)
    assert ledger.free_bytes == ledger.total_bytes == 400
    ledger.check_integrity()


def test_the_ledger_refuses_unknown_and_doubled_ranges() -> None:
    ledger = DeviceLedger(pages=4, page_bytes=100)
    ledger.reserve("llama", 100)
    with pytest.raises(LedgerError, match="reserved already"):
        ledger.reserve("llama", 100)
    with pytest.raises(LedgerError, match=r"no range qwen is reserved; there are \['llama'\]"):
        ledger.map("qwen", 0, 1)


class DeviceLedgerMachine(RuleBasedStateMachine):
    """Ranges that share a small pool, against a model that keeps one dict: (range, position) -> page."""

    PAGES, PAGE_BYTES = 12, 10
    NAMES = ("a", "b", "c")

    @initialize()
    def start(self) -> None:
        self.ledger = DeviceLedger(self.PAGES, self.PAGE_BYTES)
        self.positions: dict[str, int] = {}
        self.page_at: dict[tuple[str, int], int] = {}

    def _mirror(self, name: str, runs: tuple[PageRun, ...]) -> dict[tuple[str, int], int]:
        placed = {}
        for run in runs:
            assert run.offset_bytes % self.PAGE_BYTES == 0
            for index, page in enumerate(run.pages):
                placed[name, run.offset_bytes // self.PAGE_BYTES + index] = page
        return placed

    def _touched(self, name: str, offset: int, size: int) -> set[tuple[str, int]]:
        return {(name, byte // self.PAGE_BYTES) for byte in range(offset, offset + size)}

    @rule(name=st.sampled_from(NAMES), size=st.integers(1, 100))
    def reserve(self, name: str, size: int) -> None:
        if name in self.positions:
            with pytest.raises(LedgerError):
                self.ledger.reserve(name, size)
        else:
            self.positions[name] = self.ledger.reserve(name, size) // self.PAGE_BYTES

    @precondition(lambda self: self.positions)
    @rule(data=st.data())
    def map_span(self, data: st.DataObject) -> None:
        name, offset, size = self._span(data)
        wanted = self._touched(name, offset, size) - self.page_at.keys()
        if len(wanted) > self.PAGES - len(self.page_at):
            with pytest.raises(OutOfPagesError):
                self.ledger.map(name, offset, size)
            return
        placed = self._mirror(name, self.ledger.map(name, offset, size))
        assert placed.keys() == wanted
        assert not set(placed.values()) & set(self.page_at.values())
        self.page_at |= placed

    @precondition(lambda self: self.positions)
    @rule(data=st.data())
    def unmap_span(self, data: st.DataObject) -> None:
        name, offset, size = self._span(data)
        gone = self._mirror(name, self.ledger.unmap(name, offset, size))
        assert gone == {key: self.page_at[key] for key in self._touched(name, offset, size) & self.page_at.keys()}
        for key in gone:
            del self.page_at[key]

    @precondition(lambda self: self.positions)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.positions)))
        gone = self._mirror(name, self.ledger.release(name))
        assert gone == {key: page for key, page in self.page_at.items() if key[0] == name}
        self.page_at = {key: page for key, page in self.page_at.items() if key[0] != name}
        del self.positions[name]

    def _span(self, data: st.DataObject) -> tuple[str, int, int]:
        name = data.draw(st.sampled_from(sorted(self.positions)))
        end = self.positions[name] * self.PAGE_BYTES
        offset = data.draw(st.integers(0, end))
        return name, offset, data.draw(st.integers(0, end - offset))

    @invariant()
    def bytes_are_conserved(self) -> None:
        self.ledger.check_integrity()
        assert self.ledger.free_bytes == (self.PAGES - len(self.page_at)) * self.PAGE_BYTES
        mapped = sum(self.ledger.mapped_bytes(name) for name in self.positions)
        assert mapped + self.ledger.free_bytes == self.ledger.total_bytes

    def teardown(self) -> None:
        for name in getattr(self, "positions", {}):
            self.ledger.release(name)
        if hasattr(self, "ledger"):
            assert self.ledger.free_bytes == self.ledger.total_bytes
            self.ledger.check_integrity()


TestDeviceLedger = DeviceLedgerMachine.TestCase
TestDeviceLedger.settings = settings(max_examples=60, stateful_step_count=40, deadline=None, derandomize=True)
