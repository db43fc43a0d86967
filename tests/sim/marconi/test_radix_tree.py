"""The radix tree against all sequences written out, and what its caches and policies do, under histories that
Hypothesis draws."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sim.study.marconi.block_cache import BlockCache, BlockNames
from sim.study.marconi.hybrid_cache import HybridCache
from sim.study.marconi.hybrid_model import HybridModel
from sim.study.marconi.node_eviction import FlopEfficiency, FlopsPerByteFreed, LeastRecentLeaf, NodeEviction, StaleFirst
from sim.study.marconi.radix_tree import RadixTree, StateNode, Tokens, count_tokens

SMALL = HybridModel(ssm_layers=2, attention_layers=1, mlp_layers=2, width=4, state_dimension=4)

# Of one text either all sequences have a token twice or none: the pieces of two are the same, or differ.
sequences = st.lists(st.sampled_from([(1, 1), (2, 3), (3, 2)]), min_size=1, max_size=6).map(tuple)


def tokens_of(sequence: Tokens) -> tuple[tuple[int, int], ...]:
    """A letter for each token."""
    return tuple((first, place) for first, count in sequence for place in range(count))


def prefix_of(node: StateNode) -> Tokens:
    return sum((each.edge for each in reversed([*node.path])), ())


def common(one: tuple[object, ...], other: tuple[object, ...]) -> int:
    """How many leading letters are equal."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


class TreeMachine(RuleBasedStateMachine):
    """Beside the tree a set of the prefixes that have a state. KV is there of all tokens of all of them."""

    @initialize()
    def empty(self) -> None:
        self.tree = RadixTree()
        self.states: set[Tokens] = set()
        self.now = 0

    @rule(sequence=sequences)
    def add(self, sequence: Tokens) -> None:
        """A state at its end, and where it leaves what is there, if that is between two states."""
        self.now += 1
        left = max((common(sequence, state) for state in self.states), default=0)
        changed = self.tree.add(sequence, self.tree.match(sequence), self.now)
        new = {sequence} | ({sequence[:left]} if left else set())
        assert {prefix_of(node) for node in changed} >= new - self.states
        self.states |= new

    @precondition(lambda self: self.states)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        """Whichever has at most one child."""
        going = [node for node in self.tree if len(node.children) <= 1]
        node = data.draw(st.sampled_from(sorted(going, key=lambda node: node.serial)))
        prefix, leaf = prefix_of(node), not node.children
        changed = self.tree.remove(node)
        assert changed.parent is None or prefix_of(changed) in self.states
        self.states.discard(prefix)
        if leaf:
            assert not any(common(state, prefix) == len(prefix) for state in self.states)

    @rule(sequence=sequences)
    def match(self, sequence: Tokens) -> None:
        """The deepest state that is a prefix of the sequence, and how far KV goes along with it beyond that."""
        found = self.tree.match(sequence)
        reusable = [state for state in self.states if sequence[: len(state)] == state]
        longest = max(reusable, key=len, default=())
        assert (prefix_of(found.node), found.node.end) == (longest, count_tokens(longest))
        assert found.at == len(longest)
        assert found.at + found.shared == max((common(sequence, state) for state in self.states), default=0)

    @invariant()
    def counts_agree(self) -> None:
        self.tree.check_integrity()
        assert {prefix_of(node) for node in self.tree} == self.states
        written = {tokens_of(state)[: end + 1] for state in self.states for end in range(count_tokens(state))}
        assert self.tree.kv_tokens == len(written)


TreeMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
test_the_tree_is_the_set_of_its_prefixes = TreeMachine.TestCase


def naive_choice(cache: HybridCache, now: int) -> list[StateNode]:
    """All nodes that are worth least, from scores of every one."""
    eviction = cache.eviction
    nodes = list(cache.tree)
    if isinstance(eviction, LeastRecentLeaf):
        leaves = [node for node in nodes if not node.children]
        oldest = min(leaf.used for leaf in leaves)
        return [leaf for leaf in leaves if leaf.used == oldest]
    assert isinstance(eviction, FlopEfficiency)
    nodes = [node for node in nodes if len(node.children) <= 1]
    oldest = min(node.used for node in nodes)
    if isinstance(eviction, StaleFirst) and now - oldest > eviction.patience:
        return [node for node in nodes if node.used == oldest]
    recencies = normalized([1 / max(1, now - node.used) for node in nodes])
    efficiencies = normalized([saved(node) / divisor(node, eviction) for node in nodes])
    scores = [r + eviction.alpha * e for r, e in zip(recencies, efficiencies, strict=True)]
    return [node for node, score in zip(nodes, scores, strict=True) if score <= min(scores) + 1e-12]


def saved(node: StateNode) -> float:
    return SMALL.flops(node.end) - SMALL.flops(node.before)


def divisor(node: StateNode, eviction: FlopEfficiency) -> float:
    if isinstance(eviction, FlopsPerByteFreed):
        return SMALL.state_bytes + (0 if node.children else node.own_tokens * SMALL.kv_bytes)
    return SMALL.state_bytes + node.end * SMALL.kv_bytes


def normalized(values: list[float]) -> list[float]:
    spread = max(values) - min(values)
    return [(value - min(values)) / spread if spread else 0.0 for value in values]


EVICTIONS = [
    LeastRecentLeaf(),
    *(make(SMALL, alpha) for make in (FlopEfficiency, FlopsPerByteFreed, StaleFirst) for alpha in (0.0, 0.1, 2.0)),
]


PATIENCE = 6


def fresh(eviction: NodeEviction) -> NodeEviction:
    if not isinstance(eviction, FlopEfficiency):
        return LeastRecentLeaf()
    made = type(eviction)(SMALL, eviction.alpha)
    if isinstance(made, StaleFirst):
        made.patience = PATIENCE
    return made


@given(st.sampled_from(EVICTIONS), st.lists(sequences, max_size=40), st.integers(0, 6))
@settings(max_examples=150, deadline=None)
def test_a_cache_finds_whole_states_and_gives_up_what_is_worth_least(
    eviction: NodeEviction, history: list[Tokens], states: int
) -> None:
    capacity = states * SMALL.state_bytes + 12 * SMALL.kv_bytes
    cache = HybridCache(SMALL, capacity, fresh(eviction))
    chosen: list[bool] = []
    choose = cache.eviction.choose

    def watched(now: int) -> StateNode | None:
        node = choose(now)
        chosen.append(node in naive_choice(cache, now))
        return node

    cache.eviction.choose = watched  # type: ignore[method-assign]
    for sequence in history:
        here = {prefix_of(node) for node in cache.tree}
        found = cache.lookup(sequence)
        assert found == max((count_tokens(state) for state in here if sequence[: len(state)] == state), default=0)
        cache.insert(sequence)
        cache.tree.check_integrity()
        assert cache.used_bytes <= cache.peak_bytes <= capacity
        if SMALL.state_bytes + count_tokens(sequence) * SMALL.kv_bytes <= capacity:
            assert cache.lookup(sequence) == count_tokens(sequence)
    assert all(chosen)


@given(st.lists(sequences, max_size=40), st.integers(0, 8), st.integers(1, 3))
@settings(max_examples=150, deadline=None)
def test_a_cache_of_blocks_is_one_of_named_blocks_in_order_of_use(
    history: list[Tokens], blocks: int, block_tokens: int
) -> None:
    """Beside it a list of whole prefixes, the one used last at the end: of one sequence the longer goes first."""
    block_bytes = SMALL.state_bytes + block_tokens * SMALL.kv_bytes
    cache = BlockCache(SMALL, blocks * block_bytes + block_bytes - 1, block_tokens)
    used: dict[tuple[tuple[int, int], ...], int] = {}
    for now, sequence in enumerate(history):
        tokens = tokens_of(sequence)
        prefixes = [tokens[:end] for end in range(block_tokens, len(tokens) + 1, block_tokens)]
        found = [prefix for prefix in prefixes if prefix in used]
        assert cache.lookup(sequence) == len(found) * block_tokens
        cache.insert(sequence)
        for prefix in prefixes:
            used[prefix] = now
        while len(used) > blocks:
            del used[min(used, key=lambda prefix: (used[prefix], -len(prefix)))]
        assert cache.used_bytes == len(used) * block_bytes <= cache.peak_bytes <= blocks * block_bytes
        cache.tree.check_integrity()


def test_blocks_have_one_name_where_all_up_to_their_end_is_the_same() -> None:
    names = BlockNames(4)
    one, other = names.blocks(((1, 6), (2, 6), (3, 4))), names.blocks(((1, 6), (2, 6), (4, 9)))
    assert len(one) == 4
    assert len(other) == 5
    assert one[:3] == other[:3]
    assert not {*one[3:]} & {*other[3:]}
    assert names.blocks(((1, 6),)) == one[:1]


def test_of_an_edge_that_is_matched_in_part_nothing_is_found_nor_below_it() -> None:
    tree = RadixTree()
    for sequence in (((1, 5), (2, 5), (3, 5)), ((1, 5), (2, 5), (3, 5), (4, 5))):
        tree.add(sequence, tree.match(sequence), 1)
    asked = ((1, 5), (9, 5), (4, 5))
    found = tree.match(asked)
    assert (found.node, found.at, found.shared) == (tree.root, 0, 1)


def test_a_node_with_two_children_cannot_go_nor_the_root() -> None:
    tree = RadixTree()
    for sequence in (((1, 5), (2, 5)), ((1, 5), (3, 5))):
        tree.add(sequence, tree.match(sequence), 1)
    (upper,) = tree.root.children.values()
    for node in (upper, tree.root):
        with pytest.raises(ValueError, match="at most one child"):
            tree.remove(node)
    with pytest.raises(ValueError, match="part of a leaf"):
        tree.cut(upper, 1)


def test_sizes_are_those_that_were_published() -> None:
    model = HybridModel()
    assert (model.state_bytes, model.kv_bytes) == (26_787_840, 65_536)
    width, n, length = 4096, 128, 1000
    attention, mlp = 8 * length * width**2 + 4 * length**2 * width, 16 * length * width**2
    ssm = 12 * length * width**2 + 16 * length * width * n + 10 * length * width
    assert model.flops(length) == pytest.approx(4 * attention + 28 * mlp + 24 * ssm)
