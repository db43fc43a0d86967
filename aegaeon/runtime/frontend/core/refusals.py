"""What clients hear of requests that are not served."""

from __future__ import annotations

from typing import assert_never

from aegaeon.core.command import RejectReason
from aegaeon.core.generation import (
    ContextLengthError,
    FieldError,
    GenerationError,
    ModelUnavailableError,
    OverloadedError,
    PoolUnavailableError,
    UnknownModelError,
)
from aegaeon.runtime.wire import messages as m

_DEFAULT_RETRY_S = 5.0


def no_node() -> PoolUnavailableError:
    """No node has come back."""
    return PoolUnavailableError("The pool has no node that can serve now; it is being restarted.", _DEFAULT_RETRY_S)


def rejection(message: m.Rejected) -> GenerationError:
    """A scheduler has turned the request away."""
    match message.reason:
        case RejectReason.OVERLOADED:
            return OverloadedError(
                message.detail or "the pool is overloaded", message.retry_after_s or _DEFAULT_RETRY_S
            )
        case RejectReason.TOO_LARGE:
            return ContextLengthError(message.detail, "prompt")
        case RejectReason.TOO_WIDE:
            return FieldError(message.detail, "best_of")
        case RejectReason.MODEL_FAILED:
            return ModelUnavailableError(message.detail, message.retry_after_s)
        case RejectReason.UNKNOWN_MODEL:
            return UnknownModelError(message.detail)
        case _:
            assert_never(message.reason)
