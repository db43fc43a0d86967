"""What a driver's core has done: the closed union of what is to go out, in this order. Plain data."""

from __future__ import annotations

from dataclasses import dataclass

from aegaeon.core.instance import InstanceSpec
from aegaeon.memory.stored_block import StoredBlock
from aegaeon.runtime.wire import messages as m
from aegaeon.runtime.wire.model_failure import ModelFailure


@dataclass(frozen=True, slots=True)
class TellFrontend:
    """A message for a frontend."""

    frontend_id: str
    message: m.ToFrontend


@dataclass(frozen=True, slots=True)
class TellInstance:
    """A message for an incarnation of an instance."""

    key: str
    message: m.ToInstance


@dataclass(frozen=True, slots=True)
class ReportState:
    """News for every frontend; the loop adds what host memory holds."""

    state: m.NodeState


@dataclass(frozen=True, slots=True)
class CloseFrontend:
    """Nothing goes to this frontend, or comes from it, any more."""

    frontend_id: str


@dataclass(frozen=True, slots=True)
class CloseInstance:
    """An incarnation has no process any more: close what led there. Its leases of host weights are over."""

    key: str


@dataclass(frozen=True, slots=True)
class StartInstance:
    """Have a new process for an instance; where that is refused, ``InstanceNotStarted``."""

    spec: InstanceSpec


@dataclass(frozen=True, slots=True)
class WatchProcess:
    """Hear of a process's end from the kernel: Ray takes a second or more to tell."""

    key: str
    pid: int


@dataclass(frozen=True, slots=True)
class KillProcess:
    """End a watched process, which is stuck."""

    key: str


@dataclass(frozen=True, slots=True)
class GiveUpInstance:
    """Tell of its end (``InstanceEnded``) though nobody has heard of it."""

    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class ReadPulses:
    """Tell what the pulses of all instances say now (``PulseRead``)."""


@dataclass(frozen=True, slots=True)
class LeaseWeights:
    """Send an incarnation a lease of a model's weights as soon as they are in host memory: at once where they are."""

    model: str
    key: str


@dataclass(frozen=True, slots=True)
class CancelWeights:
    """An incarnation does not wait for a model any more."""

    model: str
    key: str


@dataclass(frozen=True, slots=True)
class GiveBackWeights:
    """A lease is over."""

    lease_id: int


@dataclass(frozen=True, slots=True)
class ReadWeights:
    """Read a model into host memory, for nobody yet; answered by ``WeightsRead`` or ``WeightsUnreadable``."""

    model: str


@dataclass(frozen=True, slots=True)
class DropWeights:
    """Give models up in host memory."""

    models: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ExamineModel:
    """Look, elsewhere, whether a model could be used again: ``ModelExamined``."""

    failure: ModelFailure


@dataclass(frozen=True, slots=True)
class CopyKv:
    """Copy blocks out of the slab cache, which may be written to meanwhile: ``KvCopied``."""

    blocks: tuple[StoredBlock, ...]


@dataclass(frozen=True, slots=True)
class WriteKv:
    """Write those of the blocks copied last that were left alone meanwhile: ``KvWritten``."""

    names: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class RemoveKv:
    """Remove blocks from the disk, before what comes later is written there."""

    names: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class ReadKv:
    """Read blocks into the slab cache, where nobody else touches them until ``KvRead``."""

    reading: int
    blocks: tuple[StoredBlock, ...]


@dataclass(frozen=True, slots=True)
class Crash:
    """The core's books cannot be trusted any more: raise this."""

    error: Exception


DriverOutput = (
    TellFrontend
    | TellInstance
    | ReportState
    | CloseFrontend
    | CloseInstance
    | StartInstance
    | WatchProcess
    | KillProcess
    | GiveUpInstance
    | ReadPulses
    | LeaseWeights
    | CancelWeights
    | GiveBackWeights
    | ReadWeights
    | DropWeights
    | ExamineModel
    | CopyKv
    | WriteKv
    | RemoveKv
    | ReadKv
    | Crash
)
