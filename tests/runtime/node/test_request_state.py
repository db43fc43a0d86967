"""The life of a request as a table: whole, and drawn as it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from aegaeon.runtime.node.core.request_state import (
    IN_A_TURN,
    TRANSITIONS,
    DriverRequestState,
    RequestHappening,
    TransitionError,
    mermaid,
    next_state,
)

PAGE = Path(__file__).parents[3] / "docs/architecture.md"


def test_every_state_can_be_reached_and_left_except_the_last() -> None:
    reached = {DriverRequestState.WAITING}
    for _ in DriverRequestState:
        reached |= {end for state in reached for end in TRANSITIONS[state].values()}
    assert reached == set(DriverRequestState) == set(TRANSITIONS)
    assert [state for state, row in TRANSITIONS.items() if not row] == [DriverRequestState.OVER]


@pytest.mark.parametrize("state", sorted(set(DriverRequestState) - {DriverRequestState.OVER}))
def test_a_request_can_end_and_be_given_up_in_every_state(state: DriverRequestState) -> None:
    assert next_state("a", state, RequestHappening.ENDED) is DriverRequestState.OVER
    assert {RequestHappening.DROP, RequestHappening.RELEASE} <= TRANSITIONS[state].keys()


@pytest.mark.parametrize("state", sorted(DriverRequestState))
def test_a_request_dies_with_an_instance_where_it_is_in_a_turn_and_nowhere_else(state: DriverRequestState) -> None:
    assert (RequestHappening.DIED in TRANSITIONS[state]) == (state in IN_A_TURN)


def test_only_a_waiting_request_gets_into_a_turn() -> None:
    ready = [state for state, row in TRANSITIONS.items() if RequestHappening.TAKEN in row]
    assert ready == [DriverRequestState.WAITING]


def test_what_cannot_happen_is_an_error_that_says_to_whom_and_when() -> None:
    with pytest.raises(TransitionError, match="request r7 is dropping, where this cannot happen: StartTurn"):
        next_state("r7", DriverRequestState.DROPPING, RequestHappening.TAKEN)


def test_the_page_draws_the_table() -> None:
    drawn = re.findall(r"^```mermaid\n(.*?)\n```$", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    assert mermaid() in drawn
