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
from aegaeon.memory.token_hash import block_names, next_name, packed, root_name
from aegaeon.runtime.node import kv_index, node_kv
from aegaeon.runtime.node.kv_index import ForeignIndexError, KvIndex, WholeBlock
from aegaeon.runtime.node.node_kv import NodeKv
from aegaeon.runtime.wire.messages import KvBranch, KvNames

SHAPES = {
    "m": KvShape((LayerKv(1, 2, 2),), element_bytes=1, block_tokens=4),  # 16 bytes a block
    "n": KvShape((LayerKv(1, 5, 5),), element_bytes=1, block_tokens=4),  # 40 bytes a block
    "o": KvShape((LayerKv(1, 2, 2),), element_bytes=1, block_tokens=4),  # equal to m's, so they share slabs
}
SLAB_BYTES, SLABS = 100, 6


def short_name(before: bytes, block: bytes) -> bytes:
    """One of a few names."""
    return bytes((next_name(before, block)[0] % 8 + 1,)) * 16


def make(heirlooms: tuple[int, int] | None = None, slabs: int = SLABS, prefix_cache: str = "lru") -> NodeKv:
    return NodeKv(slabs * SLAB_BYTES, SLAB_BYTES, SHAPES.values(), heirlooms, prefix_cache=prefix_cache)


@contextmanager
def taken_over(kv: NodeKv, slabs: int = SLABS, prefix_cache: str = "lru") -> Iterator[NodeKv]:
    """The cache of the next driver, when this one is dead."""
    left = kv.heirlooms()
    kv.close()
    try:
        heir = make(left, slabs, prefix_cache)
    finally:
        for fd in left:
            os.close(fd)
    try:
        yield heir
    finally:
        heir.check_integrity()
        heir.close()


def names_of(model: str, tokens: Sequence[int] = (), salt: str = "") -> KvNames:
    """As a frontend has them, of the prompt; those that it has not named are worked out."""
    root = root_name(model, salt)
    return KvNames(root, tuple(block_names(root, tokens, 4)))


def come(kv: NodeKv, key: str, model: str, tokens: Sequence[int], salt: str = "") -> int:
    """Open a table: of how many tokens there is KV."""
    return kv.open(key, model, SHAPES[model], names_of(model, tokens[:6], salt), tokens)


def hold(kv: NodeKv, key: str, model: str, tokens: Sequence[int], safe: int) -> tuple[int, ...]:
    """Have a table for these tokens, of which so many are safe."""
    come(kv, key, model, tokens)
    kv.extend(key, len(tokens))
    assert kv.note(key, lambda start, end: tokens[start:end], safe) == safe
    return kv.blocks(key)


def test_whole_blocks_are_found_by_their_tokens_and_shared() -> None:
    kv = make()
    blocks = hold(kv, "a", "m", range(14), safe=11)
    assert come(kv, "again", "m", range(14)) == 8
    assert kv.blocks("again") == blocks[:2]
    assert kv.counts.used_bytes == 4 * 16
    kv.free("a")
    assert (kv.counts.used_bytes, kv.counts.kept_bytes) == (2 * 16, 0)
    kv.free("again")
    assert (kv.counts.used_bytes, kv.counts.kept_bytes) == (0, 2 * 16)
    assert come(kv, "once more", "m", range(14)) == 8
    kv.check_integrity()
    kv.close()


def test_models_of_equal_shapes_share_slabs_and_find_each_their_own() -> None:
    kv = make()
    first = hold(kv, "m", "m", range(9), safe=8)
    second = hold(kv, "o", "o", range(9), safe=8)
    assert {block // SLAB_BYTES for block in (*first, *second)} == {0}
    assert (come(kv, "m again", "m", range(9)), come(kv, "o again", "o", range(9))) == (8, 8)
    assert (kv.blocks("m again"), kv.blocks("o again")) == (first[:2], second[:2])
    kv.close()


def test_a_driver_leaves_them_to_the_next() -> None:
    kv = make()
    blocks = hold(kv, "a", "m", range(14), safe=11)
    with taken_over(kv) as heir:
        assert heir.counts.used_bytes == 0
        assert come(heir, "again", "m", range(14)) == 8
        assert heir.blocks("again") == blocks[:2]
        assert come(heir, "too", "m", range(14)) == 8
        assert heir.counts.used_bytes == 2 * 16
        assert len(heir.extend("again", 14)) == 2


def test_the_last_token_is_left_to_be_fed() -> None:
    kv = make()
    hold(kv, "a", "m", range(8), safe=8)
    with taken_over(kv) as heir:
        assert come(heir, "again", "m", range(8)) == 4


@pytest.mark.parametrize(
    ("model", "tokens", "salt"),
    [("n", range(9), ""), ("m", [9, *range(1, 9)], ""), ("m", range(3), ""), ("m", range(9), "another")],
)
def test_other_tokens_models_or_salts_find_nothing(model: str, tokens: Sequence[int], salt: str) -> None:
    kv = make()
    hold(kv, "a", "m", range(9), safe=9)
    with taken_over(kv) as heir:
        assert come(heir, "other", model, tokens, salt) == 0


def test_what_was_taken_back_is_not_written_over() -> None:
    kv = make()
    blocks = hold(kv, "a", "m", range(9), safe=9)
    assert kv.note("a", lambda start, end: range(9)[start:end], 5) == 4
    assert blocks[1] not in kv.extend("a", 9)
    assert come(kv, "again", "m", range(9)) == 8
    kv.check_integrity()
    kv.close()


def test_a_block_at_a_branch_is_lent_and_outlives_its_request() -> None:
    kv = make()
    blocks = hold(kv, "a", "m", (*range(4), 4, 5, 6, 7, 8), safe=9)
    assert come(kv, "b", "m", (*range(4), 4, 5, 9, 9)) == 4
    branch = kv.branch("b", (4, 5, 9))
    assert branch == KvBranch(blocks[1], 2)
    assert kv.branch("b", (5, 5)) is None
    beside = kv.branch_beside("b", "a", 8, 1)
    assert beside == KvBranch(blocks[2], 1)
    come(kv, "salted", "m", range(9), "another")
    assert kv.branch_beside("salted", "a", 8, 1) is None
    kv.free("salted")
    kv.free("a")
    kv.free("b")
    come(kv, "n", "m", range(9, 12))
    everything = kv.extend("n", 4 * (6 * SLABS - 2))
    assert not {branch.block, beside.block} & {*everything}
    kv.check_integrity()
    kv.take_back(branch)
    kv.take_back(beside)
    kv.check_integrity()
    kv.free("n")
    assert kv.counts.used_bytes == 0
    kv.close()


def test_kv_of_other_weights_is_not_found() -> None:
    version = ""
    kv = NodeKv(SLABS * SLAB_BYTES, SLAB_BYTES, SHAPES.values(), version=lambda model: version)
    hold(kv, "first", "m", range(9), safe=9)
    version = "other weights"
    assert come(kv, "second", "m", range(9)) == 0
    kv.extend("second", 9)
    kv.note("second", lambda start, end: range(9)[start:end], 9)
    assert come(kv, "third", "m", range(9)) == 8
    assert kv.blocks("third") == kv.blocks("second")[:2]
    version = ""
    assert come(kv, "fourth", "m", range(9)) == 8
    assert kv.blocks("fourth") == kv.blocks("first")[:2]
    kv.check_integrity()
    kv.close()


def test_what_is_kept_gives_way() -> None:
    kv = make()
    hold(kv, "a", "m", range(9), safe=9)
    with taken_over(kv) as heir:
        come(heir, "b", "n", range(3))
        assert len(heir.extend("b", SLABS * 2 * 4)) == SLABS * 2
        assert heir.counts.evicted_blocks == 2
        assert come(heir, "a", "m", range(9)) == 0
        with pytest.raises(OutOfSlabsError):
            heir.extend("a", 1)


def test_off_keeps_only_what_a_driver_left_and_that_for_a_while() -> None:
    kv = make(prefix_cache="off")
    hold(kv, "a", "m", range(9), safe=9)
    assert come(kv, "beside", "m", range(9)) == 0
    kv.free("a")
    kv.free("beside")
    assert kv.counts.assigned_bytes == 0
    hold(kv, "a", "m", range(9), safe=9)
    with taken_over(kv, prefix_cache="off") as heir:
        assert come(heir, "a", "m", range(9)) == 8
        heir.forget_rest()
        heir.free("a")
        assert heir.counts.assigned_bytes == 0


def test_it_can_be_taken_over_again_and_again() -> None:
    kv = make()
    hold(kv, "a", "m", range(9), safe=9)
    with taken_over(kv) as heir:
        assert come(heir, "a", "m", range(9)) == 8
        with_second = heir.heirlooms()
        second = make(with_second)
        assert come(second, "a", "m", range(9)) == 8
        second.free("a")
        assert second.counts.kept_bytes == 2 * 16
        second.close()
        for fd in with_second:
            os.close(fd)


def test_the_memory_of_another_cache_is_refused() -> None:
    with pytest.raises(ForeignIndexError), taken_over(make(), slabs=SLABS + 1):
        pass


def test_blocks_whose_beginning_is_lost_are_not_found() -> None:
    index = KvIndex(SLABS * SLAB_BYTES, SLAB_BYTES, tuple(SHAPES.values()))
    root, shape = root_name("m"), SHAPES["m"]
    tokens = [packed(range(start, start + 4)) for start in (0, 4, 8)]
    names = list(block_names(root, range(12), 4))
    befores: tuple[int | bytes, ...] = (root, 0, 16)
    for block, name, before, own in zip((0, 16, 32), names, befores, tokens, strict=True):
        index.set(WholeBlock(block, shape, name, before, own))
    assert [one.name for one in index.whole_blocks()] == names
    index.set(WholeBlock(16, shape, names[1], 0, packed((9, 9, 9, 9))))  # the name is of other tokens
    assert [one.block for one in index.whole_blocks()] == [0]
    assert [one.block for one in index.whole_blocks()] == [0]
    index.close()


@dataclass
class Held:
    """A request: its tokens, and how many of them are in safety."""

    model: str
    tokens: list[int]
    safe: int = 0


class TakeOverMachine(RuleBasedStateMachine):
    """Requests come, grow, go back and go; now and then the driver dies, and they come again.

    What is found, and what anybody holds, is of its own tokens: also where names are so short that many are equal.
    """

    @initialize(policy=st.sampled_from(("lru", "slo", "off")), name_bits=st.sampled_from((128, 128, 3)))
    def begin(self, policy: str, name_bits: int) -> None:
        self.patch = pytest.MonkeyPatch()
        if name_bits < 128:
            for module in (node_kv, kv_index):
                self.patch.setattr(module, "next_name", short_name)
        self.short = name_bits < 128
        self.policy = policy
        self.kv = make(prefix_cache=policy)
        self.held: dict[str, Held] = {}
        self.memory: dict[int, tuple[str, list[int]]] = {}  # what was computed where: model and all tokens so far
        self.count = 0

    @rule(model=st.sampled_from(tuple(SHAPES)), tokens=st.lists(st.integers(0, 1), min_size=1, max_size=12))
    def arrive(self, model: str, tokens: list[int]) -> None:
        key = f"r{self.count}"
        self.count += 1
        self._come(key, Held(model, tokens))

    def _come(self, key: str, held: Held) -> None:
        prompt = () if self.short else held.tokens[:6]
        held.safe = self.kv.open(key, held.model, SHAPES[held.model], names_of(held.model, prompt), held.tokens)
        assert held.safe < len(held.tokens)
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
        held.safe = self.kv.note(key, lambda start, end: held.tokens[start:end], held.safe)

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
        self.kv = make(left, prefix_cache=self.policy)
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

    @invariant()
    def everybody_reads_their_own(self) -> None:
        for key, held in self.held.items() if hasattr(self, "held") else ():
            for number, block in enumerate(self.kv.blocks(key)[: -(-held.safe // 4)], start=1):
                model, tokens = self.memory[block]
                end = min(4 * number, held.safe)
                assert (model, tokens[:end]) == (held.model, held.tokens[:end])

    def teardown(self) -> None:
        if not hasattr(self, "kv"):
            return
        for key in self.held:
            self.kv.free(key)
        self.kv.forget_rest()
        assert self.kv.counts.used_bytes == 0
        come(self.kv, "all", "n", range(3))
        assert len(self.kv.extend("all", SLABS * 2 * 4)) == SLABS * 2
        self.kv.close()
        self.patch.undo()


TestTakeOver = TakeOverMachine.TestCase
TestTakeOver.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)


def test_a_slab_that_serves_another_shape_has_none_of_the_old_names() -> None:
    """Their records have other places, and what is left of the old ones must not be read as new."""
    small, large = SHAPES["m"], KvShape((LayerKv(1, 5, 5),), element_bytes=1, block_tokens=5)
    index = KvIndex(SLABS * SLAB_BYTES, SLAB_BYTES, (small, large))
    root, tokens = root_name("m"), list(range(8))
    first, second = block_names(root, tokens, 4)
    index.set(WholeBlock(0, small, first, root, packed(tokens[:4])))
    index.set(WholeBlock(16, small, second, 0, packed(tokens[4:])))
    assert [one.block for one in index.whole_blocks()] == [0, 16]
    index.clear(16)
    index.clear(0)
    (only,) = block_names(root, tokens[:5], 5)
    index.set(WholeBlock(0, large, only, root, packed(tokens[:5])))
    assert list(index.whole_blocks()) == [WholeBlock(0, large, only, root, packed(tokens[:5]))]
    index.close()
