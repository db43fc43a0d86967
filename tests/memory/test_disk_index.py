"""Which blocks are on disk: like a list that is sorted by use and cut to its size."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from aegaeon.memory.disk_index import DiskIndex

NAMES = st.sampled_from([bytes((letter,)) for letter in b"abcdefgh"])
TOTAL_BYTES = 20


def test_of_what_nobody_uses_the_end_goes_before_the_beginning() -> None:
    index = DiskIndex(40)
    for name in (b"a", b"b", b"c", b"other"):
        index.add(name, 10)
    index.use((b"a", b"b", b"c"))
    assert index.make_room(20) == (b"other", b"c")
    assert index.run((b"a", b"b", b"c")) == 2


class DiskIndexMachine(RuleBasedStateMachine):
    """``model``: names and sizes, least recently used first."""

    def __init__(self) -> None:
        super().__init__()
        self.index = DiskIndex(TOTAL_BYTES)
        self.model: list[tuple[bytes, int]] = []
        self.evicted = 0

    def _without(self, name: bytes) -> list[tuple[bytes, int]]:
        return [entry for entry in self.model if entry[0] != name]

    @rule(name=NAMES, size_bytes=st.integers(1, 9))
    def add(self, name: bytes, size_bytes: int) -> None:
        self.make_room(size_bytes)
        self.index.add(name, size_bytes)
        self.model = [*self._without(name), (name, size_bytes)]

    @rule(name=NAMES)
    def remove(self, name: bytes) -> None:
        self.index.remove(name)
        self.model = self._without(name)

    @rule(names=st.lists(NAMES, unique=True))
    def use(self, names: list[bytes]) -> None:
        self.index.use(names)
        sizes = dict(self.model)
        for name in reversed(names):
            if name in sizes:
                self.model = [*self._without(name), (name, sizes[name])]

    @rule(size_bytes=st.integers(0, TOTAL_BYTES + 5))
    def make_room(self, size_bytes: int) -> None:
        kept = list(self.model)
        while kept and sum(size for _, size in kept) + size_bytes > TOTAL_BYTES:
            del kept[0]
        gone = self.model[: len(self.model) - len(kept)]
        assert self.index.make_room(size_bytes) == tuple(name for name, _ in gone)
        self.model = kept
        self.evicted += len(gone)

    @rule(names=st.lists(NAMES, unique=True))
    def find(self, names: list[bytes]) -> None:
        known = [name in dict(self.model) for name in names]
        assert self.index.run(names) == (known.index(False) if False in known else len(known))

    @invariant()
    def agrees(self) -> None:
        assert len(self.index) == len(self.model)
        assert self.index.used_bytes == sum(size for _, size in self.model) <= TOTAL_BYTES
        assert self.index.evicted_blocks == self.evicted


TestDiskIndex = DiskIndexMachine.TestCase
TestDiskIndex.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
