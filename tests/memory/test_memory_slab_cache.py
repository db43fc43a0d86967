"""The slab cache: slabs by shape, fullest first, all or nothing; against a naive model."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aegaeon.core.kv_shape import KvShape, LayerKv
from aegaeon.memory.errors import LedgerError
from aegaeon.memory.slab_cache import SlabCache
from aegaeon.memory.slab_ledger import BlockTooLargeError, OutOfSlabsError
from aegaeon.memory.slab_usage import SlabUsage


def shape(block_bytes: int, layers: int = 1) -> KvShape:
    """A shape whose blocks have this many bytes (an even number for each layer)."""
    return KvShape((LayerKv(1, 1, block_bytes // layers - 1),) * layers, element_bytes=1, block_tokens=1)


SMALL, LARGE = shape(10), shape(30)


def cache_of(slabs: int, slab_bytes: int = 100) -> SlabCache:
    cache = SlabCache(slabs * slab_bytes, slab_bytes)
    cache.register(SMALL)
    cache.register(LARGE)
    return cache


def test_offsets_are_slab_times_slab_bytes_plus_index_times_block_bytes() -> None:
    cache = cache_of(3)
    assert cache.allocate(LARGE, 4) == (0, 30, 60, 100)
    assert cache.allocate(SMALL, 2) == (200, 210)
    assert cache.usage(LARGE) == SlabUsage(slabs=2, assigned_bytes=200, used_bytes=120)
    assert cache.usage(SMALL) == SlabUsage(slabs=1, assigned_bytes=100, used_bytes=20)
    assert cache.usage() == SlabUsage(slabs=3, assigned_bytes=300, used_bytes=140)
    assert cache.usage().fragmentation == pytest.approx(160 / 300)
    assert cache.free_bytes == 0


def test_an_empty_cache_is_not_fragmented() -> None:
    assert cache_of(1).usage().fragmentation == 0.0


def test_a_slab_serves_another_shape_once_its_last_block_is_freed() -> None:
    cache = cache_of(1)
    blocks = cache.allocate(SMALL, 2)
    assert not cache.can_allocate(LARGE, 1)
    cache.free(blocks[:1])
    assert cache.available(LARGE) == 0
    cache.free(blocks[1:])
    assert cache.available(LARGE) == 3
    assert cache.allocate(LARGE, 3) == (0, 30, 60)
    cache.check_integrity()


def test_allocation_is_all_or_nothing() -> None:
    cache = cache_of(2)
    cache.allocate(SMALL, 15)
    with pytest.raises(OutOfSlabsError, match=r"6 blocks of shape .* are wanted, 5 can be had") as caught:
        cache.allocate(SMALL, 6)
    assert (caught.value.wanted_blocks, caught.value.available_blocks) == (6, 5)
    assert cache.used_bytes == 150
    cache.check_integrity()


def test_the_fullest_slab_is_filled_first_so_that_the_emptiest_drains() -> None:
    cache = cache_of(3)
    first, second, third = (cache.allocate(SMALL, 10) for _ in range(3))
    cache.free(first[:2])
    cache.free(second[:9])
    cache.free(third[:5])
    assert {offset // 100 for offset in cache.allocate(SMALL, 2)} == {0}
    assert {offset // 100 for offset in cache.allocate(SMALL, 5)} == {2}
    cache.free(second[9:])
    assert cache.free_bytes == 100


def test_fullness_is_followed_in_slabs_of_more_blocks_than_classes() -> None:
    cache = cache_of(2, slab_bytes=10_000)
    first, second = cache.allocate(SMALL, 1000), cache.allocate(SMALL, 1000)
    cache.free(first[:900])
    cache.free(second[:100])
    cache.check_integrity()
    assert {offset // 10_000 for offset in cache.allocate(SMALL, 100)} == {1}
    cache.check_integrity()


def test_the_slab_that_was_freed_last_is_used_again_first() -> None:
    cache = cache_of(4)
    slabs = [cache.allocate(LARGE, 3) for _ in range(3)]
    cache.free(slabs[0])
    cache.free(slabs[1])
    assert cache.allocate(SMALL, 1) == (100,)
    assert cache.allocate(LARGE, 2) == (0, 30)


def test_equal_shapes_share_slabs() -> None:
    cache = cache_of(1)
    twin = shape(10)
    cache.register(twin)
    cache.allocate(SMALL, 5)
    assert cache.allocate(twin, 5) == (50, 60, 70, 80, 90)
    assert cache.allocate(shape(10), 0) == ()
    assert cache.shapes == (SMALL, LARGE)


def test_a_block_larger_than_a_slab_is_refused_at_registration() -> None:
    cache = SlabCache(1000, 100)
    with pytest.raises(BlockTooLargeError, match="has 101 bytes, a slab only 100: make slabs at least that large"):
        cache.register(shape(101))
    with pytest.raises(LedgerError, match="not registered"):
        cache.allocate(shape(101), 1)


def test_blocks_are_aligned_to_their_elements_in_every_slab() -> None:
    with pytest.raises(BlockTooLargeError, match="multiple of 4 bytes"):
        SlabCache(1000, 50).register(KvShape((LayerKv(1, 1, 1),), element_bytes=4, block_tokens=1))


def test_capacity_tells_what_can_never_be_served() -> None:
    cache = cache_of(4)
    cache.allocate(SMALL, 11)
    assert (cache.capacity(LARGE), cache.available(LARGE)) == (12, 6)


@pytest.mark.parametrize("offset", [0, 5, 20, 100, -10, 10_000])
def test_freeing_what_is_not_live_is_refused(offset: int) -> None:
    cache = cache_of(2)
    cache.free(cache.allocate(SMALL, 2)[:1])
    with pytest.raises(LedgerError, match="freed twice, or never allocated"):
        cache.free((offset,))
    assert cache.used_bytes == 10
    cache.check_integrity()


def test_a_cache_holds_at_least_one_slab() -> None:
    with pytest.raises(ValueError, match="holds no slab"):
        SlabCache(99, 100)
    assert SlabCache(250, 100).total_bytes == 200


class SlabCacheMachine(RuleBasedStateMachine):
    """Three shapes over few slabs, against a model that keeps one dict: live offset -> shape."""

    SLABS, SLAB_BYTES = 6, 1000
    SHAPES = (shape(100), shape(330), shape(10, layers=2))

    @initialize()
    def start(self) -> None:
        self.cache = SlabCache(self.SLABS * self.SLAB_BYTES + 17, self.SLAB_BYTES)
        self.twin = SlabCache(self.SLABS * self.SLAB_BYTES + 17, self.SLAB_BYTES)
        for kv_shape in self.SHAPES:
            self.cache.register(kv_shape)
            self.twin.register(kv_shape)
        self.live: dict[int, KvShape] = {}

    def _available(self, kv_shape: KvShape) -> int:
        serving = {offset // self.SLAB_BYTES: served for offset, served in self.live.items()}
        per_slab = self.SLAB_BYTES // kv_shape.block_bytes
        room = sum(per_slab for index in range(self.SLABS) if serving.get(index, kv_shape) == kv_shape)
        return room - sum(served == kv_shape for served in self.live.values())

    @rule(kv_shape=st.sampled_from(SHAPES), count=st.integers(0, 40))
    def allocate(self, kv_shape: KvShape, count: int) -> None:
        available = self._available(kv_shape)
        assert self.cache.available(kv_shape) == available
        assert self.cache.can_allocate(kv_shape, count) == (count <= available)
        if count > available:
            with pytest.raises(OutOfSlabsError):
                self.cache.allocate(kv_shape, count)
            return
        blocks = self.cache.allocate(kv_shape, count)
        assert blocks == self.twin.allocate(kv_shape, count), "allocation must be deterministic"
        assert len(set(blocks)) == count
        assert not set(blocks) & self.live.keys()
        self.live |= dict.fromkeys(blocks, kv_shape)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def free_some(self, data: st.DataObject) -> None:
        order = data.draw(st.permutations(sorted(self.live)))
        gone = order[: data.draw(st.integers(1, len(order)))]
        self.cache.free(gone)
        self.twin.free(gone)
        for offset in gone:
            del self.live[offset]

    @rule(offset=st.integers(-100, SLABS * SLAB_BYTES + 100))
    def free_a_stranger(self, offset: int) -> None:
        if offset not in self.live:
            with pytest.raises(LedgerError):
                self.cache.free((offset,))

    @invariant()
    def blocks_do_not_overlap(self) -> None:
        end = 0
        for offset, kv_shape in sorted(self.live.items()):
            assert offset >= end
            end = offset + kv_shape.block_bytes
            assert offset // self.SLAB_BYTES == (end - 1) // self.SLAB_BYTES, "a block lies in one slab"
            assert self.cache.is_live(kv_shape, offset)
        assert end <= self.SLABS * self.SLAB_BYTES

    @invariant()
    def bytes_are_conserved(self) -> None:
        self.cache.check_integrity()
        serving = {(offset // self.SLAB_BYTES, kv_shape) for offset, kv_shape in self.live.items()}
        slabs = Counter(kv_shape for _, kv_shape in serving)
        blocks = Counter(self.live.values())
        for kv_shape in self.SHAPES:
            usage = self.cache.usage(kv_shape)
            assert usage.slabs == slabs[kv_shape]
            assert usage.used_bytes == blocks[kv_shape] * kv_shape.block_bytes
        assert self.cache.assigned_bytes == len(serving) * self.SLAB_BYTES
        used, fragmented = self.cache.used_bytes, self.cache.usage().fragmented_bytes
        assert used + fragmented + self.cache.free_bytes == self.cache.total_bytes

    def teardown(self) -> None:
        if hasattr(self, "cache"):
            self.cache.free(list(self.live))
            assert self.cache.free_bytes == self.cache.total_bytes
            assert self.cache.used_bytes == 0
            self.cache.check_integrity()


TestSlabCache = SlabCacheMachine.TestCase
TestSlabCache.settings = settings(max_examples=60, stateful_step_count=40, deadline=None, derandomize=True)
