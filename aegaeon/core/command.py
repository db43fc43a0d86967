"""What to do: the closed union of commands that a scheduler gives.

A command is a turn, not a step: the instance steps on its own until something changes. Commands to one instance are
carried out in order; a command that names a turn which has already ended is ignored (the event that says so is on its
way).

Both worlds (runtime, simulator) carry out the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class StartTurn:
    """Run one model on one instance for a while.

    The executor makes the model resident (if it is not), brings the members' KV in, and steps. ``prefill`` members are
    processed in order, at most one prompt at a time; ``decode`` members produce one token a step. With
    ``keep_prefilled`` a prefilled member goes on decoding in the turn, else it leaves it. The turn ends when no member
    is left, when ``quota_s`` has passed since its first step (None: no limit), or on ``EndTurn``.
    """

    instance_id: str
    turn_id: int
    model: str
    prefill: tuple[str, ...] = ()
    decode: tuple[str, ...] = ()
    quota_s: float | None = None
    keep_prefilled: bool = False

    def __post_init__(self) -> None:
        if not (self.prefill or self.decode):
            raise ValueError(f"turn {self.turn_id}: a turn needs a member")


@dataclass(frozen=True, slots=True)
class ExtendTurn:
    """Let more requests of its model join a running turn."""

    instance_id: str
    turn_id: int
    prefill: tuple[str, ...] = ()
    decode: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EndTurn:
    """End a turn after the step it is in."""

    instance_id: str
    turn_id: int


@dataclass(frozen=True, slots=True)
class LoadWeights:
    """Bring a model's weights to the device in the background (prefetch), and the KV of those that will need it there.

    ``kv``: requests of the model that are in no turn.
    """

    instance_id: str
    model: str
    kv: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EvictWeights:
    """Drop a model's weights from the device. Never names the model of a running turn."""

    instance_id: str
    model: str


@dataclass(frozen=True, slots=True)
class FetchWeights:
    """Read a model's weights from disk into the node's host memory, in place of others.

    ``instead_of``: models that are on no device (any more). Answered by the event ``WeightsFetched``, or by
    ``ModelFailed``.
    """

    model: str
    instead_of: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EvictKv:
    """Drop the device copy of these requests' KV (the slab cache keeps it)."""

    instance_id: str
    request_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DropKv:
    """Free a request's KV everywhere: it will be recomputed. A running turn loses it as a member at its next step.

    Answered by the event ``KvDropped``.
    """

    request_id: str


@dataclass(frozen=True, slots=True)
class ReleaseRequest:
    """Forget a request and free all it owns: it was cancelled. A running turn loses it as a member at its next step."""

    request_id: str


class RejectReason(StrEnum):
    """Why a request is turned away."""

    OVERLOADED = "overloaded"  # try again later
    TOO_LARGE = "too_large"  # its KV can never fit
    TOO_WIDE = "too_wide"  # no step has so many rows
    MODEL_FAILED = "model_failed"  # its model cannot be loaded
    UNKNOWN_MODEL = "unknown_model"  # no such model


@dataclass(frozen=True, slots=True)
class RejectRequest:
    """Turn a request away, or give up on one; whatever it owns is freed."""

    request_id: str
    reason: RejectReason
    detail: str = ""
    retry_after_s: float | None = None


Command = (
    StartTurn
    | ExtendTurn
    | EndTurn
    | LoadWeights
    | EvictWeights
    | FetchWeights
    | EvictKv
    | DropKv
    | ReleaseRequest
    | RejectRequest
)
