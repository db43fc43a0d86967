"""Which node takes a request."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegaeon.scheduler.routing import BUSIER, MORE, choose_node


def choose(requests: list[int], of_model: list[int], warm: list[bool]) -> int:
    return choose_node(requests, of_model, warm.__getitem__)


def test_a_request_joins_others_of_its_model() -> None:
    assert choose([5, 9, 3], [0, 2, 0], [True, True, True]) == 1


def test_a_request_goes_where_the_weights_are_in_memory() -> None:
    assert choose([0, 4, 6], [0, 0, 0], [False, True, True]) == 1


def test_without_a_reason_the_idlest_takes_it() -> None:
    assert choose([4, 2, 3], [0, 0, 0], [False, False, False]) == 1


def test_of_two_that_have_the_model_the_idler_takes_it() -> None:
    assert choose([9, 7, 5], [6, 1, 0], [True, True, True]) == 1


def test_nobody_waits_for_company_on_a_node_that_is_much_busier() -> None:
    limit = int(BUSIER * 10 + MORE)
    assert choose([10, limit], [0, 3], [False, True]) == 1
    assert choose([10, limit + 1], [0, 3], [False, True]) == 0


def test_a_pool_without_nodes_is_an_error() -> None:
    with pytest.raises(ValueError, match="empty"):
        choose([], [], [])


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 5), st.booleans()), min_size=1, max_size=12))
def test_no_node_is_chosen_that_is_much_busier_than_the_idlest(nodes: list[tuple[int, int, bool]]) -> None:
    requests, of_model, warm = (list(column) for column in zip(*nodes, strict=True))
    assert requests[choose(requests, of_model, warm)] <= BUSIER * min(requests) + MORE
