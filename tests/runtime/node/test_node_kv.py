"""KV that outlives its driver: what is found again is what was safe, and it gives way to whoever needs room."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aegaeon.core.kv_shape import KvShape, LayerKv
from aegaeon.memory.slab_ledger import OutOfSlabsError
from aegaeon.runtime.node.kv_index import ForeignIndexError
from aegaeon.runtime.node.node_kv import NodeKv

SHAPES = {
    "m": KvShape((LayerKv(1, 2, 2),), element_bytes=1, block_tokens=4),  # 16 bytes a block
    "n": KvShape((LayerKv(1, 5, 5),), element_bytes=1, block_tokens=4),  # 40 bytes a block
}
SLAB_BYTES, SLABS = 100, 6


def make(heirlooms: tuple[int, int] | None = None, slabs: int = SLABS) -> NodeKv:
    return NodeKv(slabs * SLAB_BYTES, SLAB_BYTES, SHAPES.values(), heirlooms)


@contextmanager
def taken_over(kv: NodeKv, slabs: int = SLABS) -> Iterator[NodeKv]:
    """The cache of the next driver, when this one is dead."""
    left = kv.heirlooms()
    kv.close()
    try:
        heir = make(left, slabs)
    finally:
        for fd in left:
            os.close(fd)
    try:
        yield heir
    finally:
        heir.check_integrity()
        heir.close()


def hold(kv: NodeKv, key: str, model: str, tokens: Sequence[int], safe: int) -> tuple[int, ...]:
    """Have a table for these tokens, of which so many are safe."""
    kv.open(key, SHAPES[model])
    kv.extend(key, len(tokens))
    kv.note(key, model, lambda start, end: tokens[start:end], safe)
    return kv.blocks(key)


def test_whole_blocks_are_found_by_their_tokens_and_only_once() -> None:
    kv = make()
    blocks = hold(kv, "a", "m", range(14), safe=11)
    with taken_over(kv) as heir:
        assert heir.used_bytes == 0
        assert heir.adopt("again", SHAPES["m"], "m", range(14)) == 8
        assert heir.blocks("again") == blocks[:2]
        assert heir.adopt("too", SHAPES["m"], "m", range(14)) == 0
        assert heir.used_bytes == 2 * 16
        assert len(heir.extend("again", 14)) == 2


def test_the_last_token_is_left_to_be_fed() -> None:
    kv = make()
    hold(kv, "a", "m", range(8), safe=8)
    with taken_over(kv) as heir:
        assert heir.adopt("again", SHAPES["m"], "m", range(8)) == 4


@pytest.mark.parametrize(("model", "tokens"), [("n", range(9)), ("m", [9, *range(1, 9)]), ("m", range(3))])
def test_other_tokens_find_nothing(model: str, tokens: Sequence[int]) -> None:
    kv = make()
    hold(kv, "a", "m", range(9), safe=9)
    with taken_over(kv) as heir:
        assert heir.adopt("other", SHAPES[model], model, tokens) == 0


def test_what_was_freed_or_taken_back_is_not_found() -> None:
    kv = make()
    hold(kv, "freed", "m", range(9), safe=9)
    kv.free("freed")
    hold(kv, "taken back", "m", range(20, 29), safe=9)
    kv.note("taken back", "m", lambda start, end: range(20, 29)[start:end], 5)
    with taken_over(kv) as heir:
        assert heir.adopt("a", SHAPES["m"], "m", range(9)) == 0
        assert heir.adopt("b", SHAPES["m"], "m", range(20, 29)) == 4


def test_what_nobody_came_for_gives_way() -> None:
    kv = make()
    hold(kv, "a", "m", range(9), safe=9)
    with taken_over(kv) as heir:
        heir.open("b", SHAPES["n"])
        assert len(heir.extend("b", SLABS * 2 * 4)) == SLABS * 2
        assert heir.adopt("a", SHAPES["m"], "m", range(9)) == 0
        with pytest.raises(OutOfSlabsError):
            heir.extend("a", 1)


def test_it_can_be_taken_over_again_and_again() -> None:
    kv = make()
    hold(kv, "a", "m", range(9), safe=9)
    with taken_over(kv) as heir:
        assert heir.adopt("a", SHAPES["m"], "m", range(9)) == 8
        with_second = heir.heirlooms()
        second = make(with_second)
        assert second.adopt("a", SHAPES["m"], "m", range(9)) == 8
        second.forget_rest()
        second.free("a")
        assert second.assigned_bytes == 0
        second.close()
        for fd in with_second:
            os.close(fd)


def test_the_memory_of_another_cache_is_refused() -> None:
    with pytest.raises(ForeignIndexError), taken_over(make(), slabs=SLABS + 1):
        pass


@dataclass
class Held:
    """A request: its tokens, and how many of them are in safety."""

    model: str
    tokens: list[int]
    safe: int = 0


class TakeOverMachine(RuleBasedStateMachine):
    """Requests come, grow, go back and go; now and then the driver dies, and they come again."""

    @initialize()
    def begin(self) -> None:
        self.kv = make()
        self.held: dict[str, Held] = {}
        self.memory: dict[int, tuple[str, list[int]]] = {}  # what was computed where: model and all tokens so far
        self.count = 0

    @rule(model=st.sampled_from(tuple(SHAPES)), tokens=st.lists(st.integers(0, 1), min_size=1, max_size=12))
    def arrive(self, model: str, tokens: list[int]) -> None:
        key = f"r{self.count}"
        self.count += 1
        self._come(key, Held(model, tokens))

    def _come(self, key: str, held: Held) -> None:
        """What it finds is of its own tokens."""
        held.safe = self.kv.adopt(key, SHAPES[held.model], held.model, held.tokens)
        assert held.safe < len(held.tokens)
        for number, block in enumerate(self.kv.blocks(key) if held.safe else (), start=1):
            assert self.memory[block] == (held.model, held.tokens[: 4 * number])
        self.held[key] = held

    @precondition(lambda self: self.held)
    @rule(data=st.data(), more=st.lists(st.integers(0, 1), max_size=6))
    def step(self, data: st.DataObject, more: list[int]) -> None:
        key = data.draw(st.sampled_from(sorted(self.held)))
        held = self.held[key]
        try:
            self.kv.extend(key, len(held.tokens))
        except OutOfSlabsError:
            return
        for number, block in enumerate(self.kv.blocks(key), start=1):
            if 4 * number > held.safe:
                self.memory[block] = held.model, held.tokens[: 4 * number]
        held.safe = len(held.tokens)
        held.tokens += more
        self._note(key)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def go_back(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.held)))
        held = self.held[key]
        held.safe = data.draw(st.integers(0, held.safe))
        held.tokens = [*held.tokens[: held.safe], 7]
        self._note(key)

    def _note(self, key: str) -> None:
        held = self.held[key]
        self.kv.note(key, held.model, lambda start, end: held.tokens[start:end], held.safe)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.held)))
        del self.held[key]
        self.kv.free(key)

    @rule()
    def die(self) -> None:
        """Every request comes again."""
        left = self.kv.heirlooms()
        self.kv.close()
        self.kv = make(left)
        for fd in left:
            os.close(fd)
        before, self.held = self.held, {}
        for key, held in before.items():
            self._come(key, held)

    @rule()
    def forget(self) -> None:
        self.kv.forget_rest()

    @invariant()
    def balanced(self) -> None:
        if hasattr(self, "kv"):
            self.kv.check_integrity()

    def teardown(self) -> None:
        for key in self.held:
            self.kv.free(key)
        self.kv.forget_rest()
        assert self.kv.assigned_bytes == 0
        self.kv.close()


TestTakeOver = TakeOverMachine.TestCase
TestTakeOver.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
