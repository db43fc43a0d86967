"""Why a model cannot be used, and whether trying again may help.

What an operating system refuses (descriptors, memory, a folder that is not there just now) may be granted a moment
later; files that are wrong stay wrong until they change.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from enum import StrEnum

import quick_model_loader as qml
from aegaeon.memory.page_pool import OutOfPagesError
from aegaeon.runtime.process.backoff import Pauses


class FailureKind(StrEnum):
    """What would have to happen for a model to work again."""

    TRANSIENT = "transient"  # time may mend it
    FILES = "files"  # its files must change
    KILLS = "kills"  # it ends the instances that run it; nobody knows why


PAUSES = {
    FailureKind.TRANSIENT: Pauses(1.0, 60.0),
    FailureKind.FILES: Pauses(2.0, 30.0),  # between looks at the files, which cost next to nothing
    FailureKind.KILLS: Pauses(300.0, 3600.0),
}

# Refusals of the operating system that say something of the files, not of the moment.
_LASTING = frozenset({errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL, errno.EFBIG})
# Files that are being replaced just now, an entry that went between two messages, a device that is full.
_PASSING = (
    MemoryError,
    OutOfPagesError,
    qml.ChangedError,
    qml.CudaError,
    qml.DeadlineError,
    qml.EvictedError,
    qml.OwnerGoneError,
)


def failure_kind(error: BaseException) -> FailureKind:
    """What kind of failure an exception is, by its own cause or by that of what it was raised from."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, _PASSING):
            return FailureKind.TRANSIENT
        number = getattr(seen, "errno", None)
        if isinstance(number, int):
            return FailureKind.FILES if number in _LASTING else FailureKind.TRANSIENT
        seen = seen.__cause__
    return FailureKind.FILES


@dataclass(frozen=True, slots=True)
class ModelProblem:
    """What is wrong with a model."""

    reason: str
    kind: FailureKind


@dataclass(frozen=True, slots=True)
class ModelFailure:
    """A model that cannot be used now; ``retry_s`` is when it is looked at next, on the node's clock."""

    model: str
    reason: str
    kind: FailureKind
    retry_s: float


class ModelFailures:
    """Who has failed, and how often in a row: a model that fails again as soon as it is back waits longer."""

    def __init__(self) -> None:
        self._failed: dict[str, ModelFailure] = {}
        self._in_a_row: dict[str, int] = {}

    def __contains__(self, model: str) -> bool:
        return model in self._failed

    @property
    def current(self) -> tuple[ModelFailure, ...]:
        """The models that cannot be used now."""
        return tuple(self._failed.values())

    def fail(self, model: str, problem: ModelProblem, now_s: float) -> ModelFailure:
        """It has failed, or something was still wrong when it was looked at."""
        failures = self._in_a_row[model] = self._in_a_row.get(model, 0) + 1
        pause_s = PAUSES[problem.kind].after(failures)
        failure = ModelFailure(model, problem.reason, problem.kind, now_s + pause_s)
        self._failed[model] = failure
        return failure

    def retry_after_s(self, model: str, now_s: float) -> float | None:
        """When it is looked at next, in seconds from now; None for one that has not failed."""
        failure = self._failed.get(model)
        return None if failure is None else max(0.0, failure.retry_s - now_s)

    def recover(self, model: str) -> None:
        """It may be used again; whether it works is not known yet."""
        self._failed.pop(model, None)

    def works(self, model: str) -> None:
        """It did what it is there for: what was before is forgotten."""
        self._in_a_row.pop(model, None)
