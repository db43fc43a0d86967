"""The prefix tree: what is found, who may go, and in which order; against a naive model that looks at everything."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aegaeon.memory.errors import LedgerError
from aegaeon.memory.eviction import EVICTIONS
from aegaeon.memory.prefix_tree import PrefixNode, PrefixTree

ROOT = b"root"


def tree_of(policy: str = "lru") -> PrefixTree:
    return PrefixTree(EVICTIONS[policy]())


def grow(tree: PrefixTree, text: str, before: PrefixNode | bytes = ROOT, worth: float = 0.0) -> PrefixNode:
    """A path of blocks, one a letter, kept: each is named by all the letters so far."""
    name = before.name if isinstance(before, PrefixNode) else b""
    for letter in text.encode():
        name += bytes((letter,))
        before = tree.get(name) or tree.add(len(tree), 1, name, before, worth)
    assert isinstance(before, PrefixNode)
    return before


def names(text: str) -> list[bytes]:
    return [text[: end + 1].encode() for end in range(len(text))]


def evicted(tree: PrefixTree) -> list[str]:
    """All that may go, in its order."""
    gone = []
    while (node := tree.evict()) is not None:
        gone.append(node.name.decode())
        tree.check_integrity()
    return gone


def test_the_longest_run_is_found() -> None:
    tree = tree_of()
    grow(tree, "abc")
    grow(tree, "abx")
    assert [node.name for node in tree.find(ROOT, names("abcd"))] == [b"a", b"ab", b"abc"]
    assert [node.name for node in tree.find(ROOT, names("aby"))] == [b"a", b"ab"]
    assert tree.find(ROOT, names("b")) == []
    assert tree.find(b"another root", names("abc")) == []


def test_a_name_that_follows_on_something_else_is_another_block() -> None:
    tree = tree_of()
    first = tree.add(0, 1, b"x", ROOT)
    tree.add(1, 1, b"y", first)
    assert tree.find(ROOT, [b"x", b"y"]) != []
    assert tree.find(ROOT, [b"y"]) == []
    assert len(tree.find(ROOT, [b"x", b"x"])) == 1
    with pytest.raises(LedgerError, match="holds already"):
        tree.add(2, 1, b"y", ROOT)


def test_leaves_go_first_and_what_was_used_last_goes_last() -> None:
    tree = tree_of()
    for text in ("abc", "abx", "q"):
        node = grow(tree, text)
        tree.hold(node)
        tree.let_go(node)
    tree.hold(node := tree.find(ROOT, names("abc"))[-1])
    assert tree.kept_bytes == 2
    tree.let_go(node)
    assert tree.kept_bytes == 5
    assert evicted(tree) == ["abx", "q", "abc", "ab", "a"]
    assert (len(tree), tree.kept_bytes) == (0, 0)


def test_what_is_held_and_what_comes_before_it_stays() -> None:
    tree = tree_of()
    grow(tree, "abcd")
    held = tree.find(ROOT, names("ab"))[-1]
    tree.hold(held)
    tree.hold(held)
    assert evicted(tree) == ["abcd", "abc"]
    tree.let_go(held)
    assert evicted(tree) == []
    tree.let_go(held)
    assert evicted(tree) == ["ab", "a"]
    with pytest.raises(LedgerError, match="nobody holds"):
        tree.let_go(held)


def test_lfu_keeps_what_is_in_demand_but_not_for_ever() -> None:
    tree = tree_of("lfu")
    popular = grow(tree, "p")
    for _ in range(3):
        tree.hold(popular)
        tree.let_go(popular)
    grow(tree, "a")
    node = tree.evict()
    assert node is not None
    assert node.name == b"a"
    for letter in "bcdefg":
        used = grow(tree, letter)
        tree.hold(used)
        tree.let_go(used)
        gone = tree.evict()
        assert gone is not None
        if gone.name == b"p":
            return
    pytest.fail("what nobody uses any more stays for ever")


def test_greedy_dual_keeps_what_is_worth_more_and_is_lru_among_equals() -> None:
    tree = tree_of("slo")
    grow(tree, "d", worth=5.0)
    grow(tree, "a", worth=1.0)
    grow(tree, "b", worth=1.0)
    assert evicted(tree) == ["a", "b", "d"]


@pytest.mark.parametrize("policy", ["lru", "slo", "lfu"])
def test_a_dead_conversation_goes_as_a_whole_before_the_living_lose_their_ends(policy: str) -> None:
    """A block is as old as the last use of what followed on it, however late that was given up."""
    tree = tree_of(policy)
    for text in ("abcd", "xy"):
        node = grow(tree, text, worth=1.0)
        tree.hold(node)
        tree.let_go(node)
    assert evicted(tree)[:4] == ["abcd", "abc", "ab", "a"]


def test_greedy_dual_weighs_models_and_not_places() -> None:
    tree = tree_of("slo")
    start = grow(tree, "a", worth=1.0)
    deep = grow(tree, "bc", start, worth=9.0)
    grow(tree, "q", worth=1.0)
    assert deep.worth == 1.0
    assert evicted(tree)[0] == "abc"


def test_flop_keeps_what_is_worth_more_a_while_longer() -> None:
    tree = tree_of("flop")
    for letter in "bcadefgh":
        node = grow(tree, letter, worth=2.0 if letter == "a" else 1.0)
        tree.hold(node)
        tree.let_go(node)
    assert evicted(tree) == list("bcdaefgh")


class PrefixTreeMachine(RuleBasedStateMachine):
    """Texts come, are held, let go and evicted; the naive model is the set of texts of all blocks."""

    @initialize(policy=st.sampled_from(sorted(EVICTIONS)))
    def begin(self, policy: str) -> None:
        self.tree = tree_of(policy)
        self.there: set[str] = set()
        self.held: list[str] = []

    @rule(text=st.text("ab", min_size=1, max_size=6))
    def come(self, text: str) -> None:
        found = self.tree.find(ROOT, names(text))
        assert len(found) == sum(text[: end + 1] in self.there for end in range(len(text)))
        node = grow(self.tree, text)
        self.tree.hold(node)
        self.held.append(text)
        self.there.update(text[: end + 1] for end in range(len(text)))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def go(self, data: st.DataObject) -> None:
        text = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        node = self.tree.get(text.encode())
        assert node is not None
        self.tree.let_go(node)

    @rule()
    def evict(self) -> None:
        may_go = {
            text
            for text in self.there
            if not any(other.startswith(text) for other in self.held)
            and not any(other != text and other.startswith(text) for other in self.there)
        }
        node = self.tree.evict()
        if node is None:
            assert not may_go
        else:
            assert node.name.decode() in may_go
            self.there.remove(node.name.decode())

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "tree"):
            return
        self.tree.check_integrity()
        assert {node.name.decode() for node in self.tree} == self.there
        kept = [text for text in self.there if not any(other.startswith(text) for other in self.held)]
        assert self.tree.kept_bytes == len(kept)


TestPrefixTree = PrefixTreeMachine.TestCase
TestPrefixTree.settings = settings(max_examples=60, stateful_step_count=40, deadline=None, derandomize=True)
