"""The block managers of the study of paged KV: beside the originals, and beside naive models."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegaeon.core.kv_shape import KvShape, LayerKv
from sim.study.paged.check import check, main
from sim.study.paged.engine import FcfsEngine
from sim.study.paged.step_cost import StepCost
from sim.systems.errors import InputError
from sim.systems.kv.buddy import BuddyPool
from sim.systems.kv.forked_tables import ForkedTables
from sim.systems.kv.group import SequenceGroup
from sim.systems.kv.orca import OrcaKv
from sim.systems.kv.paged import PagedKv

SHAPE = KvShape((LayerKv(1, 8, 8),), block_tokens=4)
COST = StepCost(base_s=1.0, prompt_token_s=0.0, decode_sequence_s=0.0, swapped_block_s=0.5)


def test_every_value_that_the_originals_gave_is_met(capsys: pytest.CaptureFixture[str]) -> None:
    values = check()
    assert len(values) > 50
    assert [value for value in values if not value.within] == []
    assert main() == 0
    assert "104" in capsys.readouterr().out


# --- the buddy allocator


@given(st.lists(st.integers(0, 3) | st.integers(-20, -1), max_size=60), st.integers(1, 60))
def test_runs_of_buddies_never_overlap_and_come_together_again(orders: list[int], blocks: int) -> None:
    pool, held = BuddyPool(blocks, 3), dict[int, int]()
    whole = [pool.has(order, blocks >> order) for order in range(4)]
    for order in orders:
        if order < 0 and held:
            start = [*held][order % len(held)]
            pool.give_back(start, held.pop(start))
        elif order >= 0 and pool.has(order, 1):
            start = pool.take(order)
            taken = {block for one, size in held.items() for block in range(one, one + (1 << size))}
            assert start % (1 << order) == 0
            assert taken.isdisjoint(range(start, start + (1 << order)))
            assert start + (1 << order) <= blocks
            held[start] = order
        assert pool.used_blocks == sum(1 << size for size in held.values())
    for start, order in held.items():
        pool.give_back(start, order)
    assert pool.used_blocks == 0
    assert [pool.has(order, blocks >> order) for order in range(4)] == whole


def test_a_pool_is_full_while_its_free_blocks_are_in_pieces() -> None:
    pool = BuddyPool(8, 3)
    starts = [pool.take(1) for _ in range(4)]
    for start in starts[::2]:
        pool.give_back(start, 1)
    assert pool.used_blocks == 4
    assert (pool.has(1, 2), pool.has(2, 1)) == (True, False)


# --- tables that share


class NaiveTables:
    """Every block is the tuple of what was written to it; equal pasts are equal blocks."""

    def __init__(self, sequences: int, tokens: int) -> None:
        self.texts = [["p"] * tokens for _ in range(sequences)]
        self.owners = [[f"b{k // 4}" for k in range(tokens)] for _ in range(sequences)]  # the block of each token
        self.names = 0

    def fork(self, child: int, parent: int) -> None:
        self.owners[child] = [*self.owners[parent]]

    def grow(self) -> None:
        for place, owner in enumerate(self.owners):
            others = {name for other, names in enumerate(self.owners) if other != place for name in names}
            first = len(owner) // 4 * 4
            if first == len(owner) or owner[-1] in others:  # a new block, or a copy of one that another has, too
                self.names += 1
                owner[first:] = [f"n{self.names}"] * (len(owner) - first)
            owner.append(owner[first] if first < len(owner) else f"n{self.names}")

    @property
    def blocks(self) -> int:
        return len({name for owner in self.owners for name in owner})


@given(st.integers(1, 4), st.integers(1, 9), st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=25))
def test_tables_hold_as_many_blocks_as_a_naive_model(sequences: int, prompt: int, forks: list[tuple[int, int]]) -> None:
    tables, naive = ForkedTables(sequences, -(-prompt // 4)), NaiveTables(sequences, prompt)
    for tokens, (child, parent) in enumerate(forks, start=prompt + 1):
        missing = tables.missing(tokens % 4 == 1)
        assert tables.grow(tokens % 4 == 1) == missing
        naive.grow()
        assert tables.blocks == naive.blocks
        if max(child, parent) < sequences and child != parent:
            before = tables.blocks
            assert tables.fork([(child, parent)]) == before - tables.blocks
            naive.fork(child, parent)
            assert tables.blocks == naive.blocks


# --- an engine


def served(kv: PagedKv | OrcaKv, groups: list[SequenceGroup], always_swap: bool = False) -> FcfsEngine:
    engine = FcfsEngine(kv, COST, groups, always_swap)
    engine.run()
    assert kv.used_blocks == kv.tokens == kv.useless_tokens == 0
    return engine


def test_an_iteration_gives_every_sequence_a_token() -> None:
    groups = [SequenceGroup(0.0, 6, 3), SequenceGroup(0.5, 2, 1)]
    engine = served(PagedKv(SHAPE, 100, 0 + 1), groups)
    assert [group.finish_s for group in groups] == [3.0, 2.0]
    assert groups[0].normalized_latency_s == 1.0
    columns = engine.log.columns()
    assert columns["running"].tolist() == [1, 2, 1]
    assert columns["tokens"].tolist() == [6, 9, 8]
    assert columns["used_blocks"].tolist() == [2, 3, 2]


def test_who_comes_last_is_computed_again_when_blocks_run_out() -> None:
    groups = [SequenceGroup(0.0, 7, 6), SequenceGroup(0.0, 7, 3)]
    engine = served(PagedKv(SHAPE, 4, 1), groups)
    assert [group.preemptions for group in groups] == [0, 1]
    assert engine.log.columns()["preempted"].sum() == 1
    assert groups[0].finish_s == 6.0
    assert groups[1].finish_s is not None
    assert groups[1].finish_s > groups[0].finish_s


def test_groups_of_several_are_swapped_and_come_back_with_what_they_had() -> None:
    groups = [SequenceGroup(0.0, 8, 6, 2), SequenceGroup(0.0, 8, 6, 2)]
    kv = PagedKv(SHAPE, 7, 20)
    engine = served(kv, groups)
    columns = engine.log.columns()
    assert kv.used_host_blocks == 0
    assert columns["swapped_out_blocks"].sum() == columns["swapped_in_blocks"].sum() > 0
    assert groups[1].preemptions == 1


def test_one_sequence_is_swapped_where_that_is_wanted() -> None:
    groups = [SequenceGroup(0.0, 7, 6), SequenceGroup(0.0, 7, 3)]
    columns = served(PagedKv(SHAPE, 4, 10), groups, always_swap=True).log.columns()
    assert columns["swapped_out_blocks"].tolist().count(2) == 1
    assert columns["waiting"].max() == 0


def test_what_was_to_be_forked_is_forked_after_a_swap() -> None:
    forks = iter([(2, [(1, 0)]), (5, [(0, 1)])])
    groups = [SequenceGroup(0.0, 8, 6, 2), SequenceGroup(0.0, 8, 6, 2, forks)]
    served(PagedKv(SHAPE, 7, 20), groups)
    assert next(forks, None) is None
    assert groups[1].preemptions == 1


def test_reservations_are_of_what_is_estimated() -> None:
    used = {}
    for estimate in ("oracle", "power2", "constant"):
        kv = OrcaKv(4, 4096, estimate)
        group = SequenceGroup(0.0, 10, 33, 3)
        kv.admit(group, 10)
        used[estimate] = (kv.used_blocks, kv.useless_tokens)
        kv.release(group, 10)
        assert kv.used_blocks == kv.useless_tokens == 0
    assert used == {"oracle": (3 * 16, 0), "power2": (3 * 32, 3 * 31), "constant": (3 * 512, 3 * (2048 - 43))}


def test_a_request_that_cannot_fit_is_refused() -> None:
    with pytest.raises(InputError, match="does not fit 3 blocks"):
        served(PagedKv(SHAPE, 3, 1), [SequenceGroup(0.0, 40, 1)])


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(1, 20), st.integers(1, 12)), min_size=1, max_size=8),
    st.integers(1, 3),
    st.booleans(),
)
def test_all_are_served_whatever_comes(shapes: list[tuple[int, int, int]], sequences: int, always_swap: bool) -> None:
    groups = [SequenceGroup(float(at), prompt, output, sequences) for at, prompt, output in sorted(shapes)]
    engine = served(PagedKv(SHAPE, 26, 300), groups, always_swap)
    assert all(group.finish_s is not None and group.made_tokens == group.output_tokens for group in groups)
    columns = engine.log.columns()
    assert columns["used_blocks"].max() <= 26
    assert (columns["tokens"] <= columns["used_blocks"] * 4).all()
    assert (columns["tokens"] <= columns["logical_tokens"]).all()
