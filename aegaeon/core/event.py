"""What happens: the closed union of events that a scheduler handles.

Both worlds (runtime, simulator) report the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from aegaeon.core.instance import InstanceSpec
from aegaeon.core.request import Request
from aegaeon.core.turn_timing import TurnTiming


class TurnEndReason(StrEnum):
    """Why a turn ended."""

    DRAINED = "drained"  # no member is left
    QUOTA = "quota"  # its time is over
    PREEMPTED = "preempted"  # EndTurn asked for it
    FAILED = "failed"  # its model could not be run here


@dataclass(frozen=True, slots=True)
class InstanceJoined:
    """An instance is ready to take turns."""

    instance: InstanceSpec


@dataclass(frozen=True, slots=True)
class InstanceLost:
    """An instance died; the turn it was in is lost.

    ``survivors``: for each of its requests that can go on, the tokens (prompt + generated) whose KV is safe in the
    slab cache. A request of the instance that is not named has lost its KV and must be recomputed.
    """

    instance_id: str
    survivors: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class RequestArrived:
    """A client wants tokens. ``found_tokens``: of the prompt, from its start, whose KV is in the slab cache already.

    The last one is never among them. They are held for the request, but may still be lost before its first turn.
    """

    request: Request
    found_tokens: int = 0


@dataclass(frozen=True, slots=True)
class RequestCancelled:
    """A client went away, or has what it wanted."""

    request_id: str


@dataclass(frozen=True, slots=True)
class RequestPrefilled:
    """A prompt was processed and its first token emitted; its KV is in the slab cache.

    Where the turn keeps prefilled requests the request goes on decoding in it; else it has left the turn.
    """

    instance_id: str
    turn_id: int
    request_id: str
    context_tokens: int


@dataclass(frozen=True, slots=True)
class RequestFinished:
    """A request's last token was emitted; it has left its turn and owns nothing any more."""

    instance_id: str
    turn_id: int
    request_id: str


@dataclass(frozen=True, slots=True)
class RequestFailed:
    """A request cannot go on (its client has been told); it has left its turn and owns nothing any more."""

    request_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class TurnEnded:
    """An instance is free again. ``contexts``: for each remaining member, its tokens so far (prompt + generated).

    ``timing``: what its steps took, where that was measured; costs may be corrected by it.
    """

    instance_id: str
    turn_id: int
    reason: TurnEndReason
    contexts: tuple[tuple[str, int], ...] = ()
    timing: TurnTiming | None = None


@dataclass(frozen=True, slots=True)
class KvExhausted:
    """The slab cache has no block for a member of a running turn; the member waits until blocks come free."""

    instance_id: str
    turn_id: int
    request_id: str


@dataclass(frozen=True, slots=True)
class KvDropped:
    """``DropKv`` was carried out: the request holds no KV and is in no turn; ``context_tokens`` are to be recomputed.

    Until this event the request must not be put into another turn: tokens of its last step may still be on their way.
    """

    request_id: str
    context_tokens: int


@dataclass(frozen=True, slots=True)
class ModelFailed:
    """A model cannot be loaded; its requests fail and new ones are rejected until ``ModelRecovered``."""

    model: str
    reason: str


@dataclass(frozen=True, slots=True)
class ModelRecovered:
    """A model that had failed may be tried again."""

    model: str


@dataclass(frozen=True, slots=True)
class WeightsFetched:
    """A model's weights are in the node's host memory: they were read from disk, or have been there from the start."""

    model: str


Event = (
    InstanceJoined
    | InstanceLost
    | RequestArrived
    | RequestCancelled
    | RequestPrefilled
    | RequestFinished
    | RequestFailed
    | TurnEnded
    | KvExhausted
    | KvDropped
    | ModelFailed
    | ModelRecovered
    | WeightsFetched
)
