"""The life of a request on its node: a table of states, and of what leads from one to another.

A request is *waiting* when no instance touches its KV: then its scheduler may put it into a turn, have its KV dropped
or forget it, and all of that is done at once. It is *running* from the moment that the turn is sent until the instance
says that the request has left it; while it runs without a block to go on with, it is *starved*.

What a scheduler wants of a running request has to wait for the instance, which may be in the middle of a step that
writes to its blocks. It is sent ``Forget``, and until it answers, the request is *dropping* (its KV goes, and it waits
again) or *releasing* (it is over). A request that is to be both is releasing, which frees everything, too. An instance
that ends a turn meanwhile does not change that: only ``Forgotten`` says that the blocks are not touched any more.

An instance that dies touches nothing any more, and answers nothing. What was releasing is over. What ran is
*interrupted*: its driver does not know which tokens its client has been given, and asks the frontend. The answer makes
it waiting. A ``DropKv`` for a request of a dead instance, before its death or before that answer, is *unsettled*: it is
carried out when the whole loss is settled, since nobody may compute again from a list of tokens that is about to be
replaced.

*Over* has no way out: the table is freed, and the request forgotten. A request may end in any state: an instance may
fail one that it was only told of ahead of time, or that has gone on elsewhere.

Two facts of a request are not states, since they go on through several: that its prompt has been processed
(``prefilled``), and that it has been in a turn (``begun``).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType


class DriverRequestState(StrEnum):
    """Where a request is in its life."""

    WAITING = "waiting"
    RUNNING = "running"
    STARVED = "starved"
    DROPPING = "dropping"
    RELEASING = "releasing"
    INTERRUPTED = "interrupted"
    UNSETTLED = "unsettled"
    OVER = "over"


class RequestHappening(StrEnum):
    """What happens to a request."""

    TAKEN = "StartTurn, ExtendTurn"
    LEFT = "TurnOver, Prefilled and not kept"
    EXHAUSTED = "no block for it"
    GRANTED = "blocks came free"
    DROP = "DropKv"
    RELEASE = "ReleaseRequest, RejectRequest"
    LET_GO = "nobody touches its blocks"
    DIED = "its instance died"
    RESUMED = "Resume"
    ENDED = "finished, failed"


_S, _H = DriverRequestState, RequestHappening

TRANSITIONS: Mapping[DriverRequestState, Mapping[RequestHappening, DriverRequestState]] = MappingProxyType(
    {
        _S.WAITING: {
            _H.TAKEN: _S.RUNNING,
            _H.DROP: _S.DROPPING,
            _H.RELEASE: _S.OVER,
            _H.ENDED: _S.OVER,
        },
        _S.RUNNING: {
            _H.LEFT: _S.WAITING,
            _H.EXHAUSTED: _S.STARVED,
            _H.DROP: _S.DROPPING,
            _H.RELEASE: _S.RELEASING,
            _H.DIED: _S.INTERRUPTED,
            _H.ENDED: _S.OVER,
        },
        _S.STARVED: {
            _H.GRANTED: _S.RUNNING,
            _H.EXHAUSTED: _S.STARVED,
            _H.LEFT: _S.WAITING,
            _H.DROP: _S.DROPPING,
            _H.RELEASE: _S.RELEASING,
            _H.DIED: _S.INTERRUPTED,
            _H.ENDED: _S.OVER,
        },
        _S.DROPPING: {
            _H.LET_GO: _S.WAITING,
            _H.DROP: _S.DROPPING,
            _H.RELEASE: _S.RELEASING,
            _H.DIED: _S.UNSETTLED,
            _H.ENDED: _S.OVER,
        },
        _S.RELEASING: {
            _H.LET_GO: _S.OVER,
            _H.DROP: _S.RELEASING,
            _H.RELEASE: _S.RELEASING,
            _H.DIED: _S.OVER,
            _H.ENDED: _S.OVER,
        },
        _S.INTERRUPTED: {
            _H.RESUMED: _S.WAITING,
            _H.DROP: _S.UNSETTLED,
            _H.RELEASE: _S.OVER,
            _H.ENDED: _S.OVER,
        },
        _S.UNSETTLED: {
            _H.RESUMED: _S.UNSETTLED,
            _H.LET_GO: _S.WAITING,
            _H.DROP: _S.UNSETTLED,
            _H.RELEASE: _S.OVER,
            _H.ENDED: _S.OVER,
        },
        _S.OVER: {},
    }
)

IN_A_TURN = frozenset({_S.RUNNING, _S.STARVED, _S.DROPPING, _S.RELEASING})
"""An instance may touch its blocks. (One that is dropping without an instance is so within one call only.)"""


class TransitionError(RuntimeError):
    """Something happened to a request that cannot happen in its state: the driver's books are wrong."""


def next_state(request_id: str, state: DriverRequestState, happening: RequestHappening) -> DriverRequestState:
    """The state that follows; raises ``TransitionError`` where the table has none."""
    following = TRANSITIONS[state].get(happening)
    if following is None:
        raise TransitionError(f"request {request_id} is {state}, where this cannot happen: {happening}")
    return following


def mermaid() -> str:
    """The table as a diagram, without what changes nothing."""
    lines = ["stateDiagram-v2", "    [*] --> waiting: Submit"]
    for state, row in TRANSITIONS.items():
        lines += [f"    {state} --> {end}: {happening}" for happening, end in row.items() if end is not state]
    return "\n".join([*lines, "    over --> [*]"])
