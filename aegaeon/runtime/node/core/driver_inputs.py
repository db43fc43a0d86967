"""What a driver's core is told: the closed union of what comes to it from outside. Plain data."""

from __future__ import annotations

from dataclasses import dataclass

from aegaeon.core.instance import InstanceSpec
from aegaeon.runtime.wire import messages as m
from aegaeon.runtime.wire.model_failure import FailureKind, ModelFailure, ModelProblem
from aegaeon.runtime.wire.pulse_reading import PulseReading


@dataclass(frozen=True, slots=True)
class FrontendOpened:
    """A frontend is opening its link; it is there until it says otherwise, or its end of the link is closed."""

    frontend_id: str


@dataclass(frozen=True, slots=True)
class FrontendSaid:
    """A message of a frontend."""

    frontend_id: str
    message: m.FromFrontend


@dataclass(frozen=True, slots=True)
class FrontendLost:
    """A frontend's end of its link is closed: it has gone or died."""

    frontend_id: str


@dataclass(frozen=True, slots=True)
class InstanceAdded:
    """A new process is on its way. ``watched``: it has a pulse that can be read."""

    spec: InstanceSpec
    incarnation: int
    watched: bool = False


@dataclass(frozen=True, slots=True)
class InstanceSaid:
    """A message of an incarnation of an instance."""

    key: str
    message: m.FromInstance


@dataclass(frozen=True, slots=True)
class InstanceEnded:
    """The process of an incarnation has ended unasked; ``unread``: what it had said before, which counts."""

    key: str
    reason: str
    unread: tuple[m.FromInstance, ...] = ()


@dataclass(frozen=True, slots=True)
class InstanceNotStarted:
    """There is no new process for an instance: something was refused that leads to it."""

    instance_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class PulseRead:
    """An incarnation's pulse, now."""

    key: str
    reading: PulseReading


@dataclass(frozen=True, slots=True)
class WeightsRead:
    """What ``ReadWeights`` asked for is in host memory."""

    model: str


@dataclass(frozen=True, slots=True)
class WeightsUnreadable:
    """A model's weights cannot be brought into host memory."""

    model: str
    reason: str
    kind: FailureKind


@dataclass(frozen=True, slots=True)
class ModelExamined:
    """The answer to ``ExamineModel``: what is still wrong with it, or None."""

    failure: ModelFailure
    problem: ModelProblem | None


@dataclass(frozen=True, slots=True)
class KvFound:
    """The disk can be used, and has these blocks from before: their names and the sizes of their files, those that were
    used last at the end."""

    files: tuple[tuple[bytes, int], ...]


@dataclass(frozen=True, slots=True)
class KvCopied:
    """What ``CopyKv`` asked for has been copied."""


@dataclass(frozen=True, slots=True)
class KvWritten:
    """What ``WriteKv`` asked for: the blocks that are on disk now, and why others are not, where some are not."""

    names: tuple[bytes, ...]
    problem: str = ""


@dataclass(frozen=True, slots=True)
class KvRead:
    """What ``ReadKv`` asked for: how many of the first blocks are there and whole. The one after them cannot be had."""

    reading: int
    blocks: int
    took_s: float


@dataclass(frozen=True, slots=True)
class TimeCame:
    """Everything else that there was has been told: what is due now can be done."""


DriverInput = (
    FrontendOpened
    | FrontendSaid
    | FrontendLost
    | InstanceAdded
    | InstanceSaid
    | InstanceEnded
    | InstanceNotStarted
    | PulseRead
    | WeightsRead
    | WeightsUnreadable
    | ModelExamined
    | KvFound
    | KvCopied
    | KvWritten
    | KvRead
    | TimeCame
)
