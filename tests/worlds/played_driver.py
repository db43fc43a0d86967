"""A driver's core without a loop: what it says is put where the test wants it. No link, no thread, no clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any, TypeVar, assert_never

from aegaeon.core.instance import InstanceSpec
from aegaeon.runtime.node.core import driver_inputs as i
from aegaeon.runtime.node.core import driver_outputs as o
from aegaeon.runtime.node.core.driver_core import DriverCore
from aegaeon.runtime.node.core.in_turn import InTurn
from aegaeon.runtime.node.core.incarnation import instance_key
from aegaeon.runtime.wire import messages as m
from aegaeon.runtime.wire.model_failure import FailureKind, ModelFailure, ModelProblem
from aegaeon.runtime.wire.pulse_reading import PulseReading

Deliver = Callable[[Any], None]
T = TypeVar("T")


class HostMemory:
    """Every model is in it, except those that are ``broken`` (and why); counts who leases what."""

    def __init__(self) -> None:
        self.broken: dict[str, tuple[str, FailureKind]] = {}
        self.leases: dict[int, tuple[str, str]] = {}  # the incarnation, and the model
        self.read: dict[str, None] = {}
        self._ids = count(1)

    def lease(self, model: str, key: str) -> m.HostWeights:
        lease_id = next(self._ids)
        self.leases[lease_id] = key, model
        return m.HostWeights(model, lease_id, None)  # type: ignore[arg-type]

    def give_back(self, lease_id: int) -> None:
        self.leases.pop(lease_id, None)

    def forget_instance(self, key: str) -> None:
        self.leases = {lease_id: lease for lease_id, lease in self.leases.items() if lease[0] != key}


def no_disk(output: o.DriverOutput) -> None:
    """Nobody told the core of one."""
    raise AssertionError(f"there is no disk for {output}")


@dataclass
class PlayedDriver:
    """``now_s`` says what time it is. ``restart`` is asked for processes, ``unread`` for the last words of one that the
    core gives up, ``examine`` for what is wrong with a model still; ``disk`` has something to read or write."""

    core: DriverCore
    now_s: Callable[[], float]
    restart: Callable[[InstanceSpec], None]
    unread: Callable[[str], tuple[m.FromInstance, ...]] = lambda _key: ()
    examine: Callable[[ModelFailure], ModelProblem | None] = lambda _failure: None
    disk: Callable[[Any], None] = no_disk
    host: HostMemory = field(default_factory=HostMemory)
    instances: dict[str, Deliver] = field(default_factory=dict)
    frontends: dict[str, Deliver] = field(default_factory=dict)
    pulses: dict[str, PulseReading] = field(default_factory=dict)
    pids: dict[str, int] = field(default_factory=dict)
    killed: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._inputs = InTurn(self._have_decided)

    def add_instance(self, spec: InstanceSpec, incarnation: int, deliver: Deliver) -> str:
        """A process is on its way; its key."""
        key = instance_key(spec.instance_id, incarnation)
        self.instances[key] = deliver
        self.tell(i.InstanceAdded(spec, incarnation, key in self.pulses))
        return key

    def add_frontend(self, frontend_id: str, deliver: Deliver) -> None:
        self.frontends[frontend_id] = deliver
        self.tell(i.FrontendOpened(frontend_id))

    def tell(self, message: i.DriverInput) -> None:
        """What comes of it at once is told when all of it has been done, as the loop does."""
        self._inputs.put(message)

    def _have_decided(self, message: i.DriverInput) -> None:
        for output in self.core.receive(message, self.now_s()):
            self._do(output)

    def _do(self, output: o.DriverOutput) -> None:
        match output:
            case o.TellInstance():
                self.instances[output.key](output.message)
            case o.TellFrontend():
                self.frontends[output.frontend_id](output.message)
            case o.ReportState():
                for deliver in self.frontends.values():
                    deliver(output.state)
            case o.CloseFrontend():
                del self.frontends[output.frontend_id]
            case o.ExamineModel():
                self.tell(i.ModelExamined(output.failure, self.examine(output.failure)))
            case o.Crash():
                raise output.error
            case o.LeaseWeights() | o.CancelWeights() | o.GiveBackWeights() | o.ReadWeights() | o.DropWeights():
                self._do_with_weights(output)
            case o.CopyKv() | o.WriteKv() | o.RemoveKv() | o.ReadKv():
                self.disk(output)
            case _:
                self._do_with_process(output)

    def _do_with_weights(
        self, output: o.LeaseWeights | o.CancelWeights | o.GiveBackWeights | o.ReadWeights | o.DropWeights
    ) -> None:
        match output:
            case o.LeaseWeights(model) | o.ReadWeights(model) if model in self.host.broken:
                self.tell(i.WeightsUnreadable(model, *self.host.broken[model]))
            case o.LeaseWeights(model, key):
                self.instances[key](self.host.lease(model, key))
            case o.ReadWeights(model):
                self.host.read[model] = None
                self.tell(i.WeightsRead(model))
            case o.DropWeights(models):
                for model in models:
                    self.host.read.pop(model, None)
            case o.GiveBackWeights(lease_id):
                self.host.give_back(lease_id)
            case o.CancelWeights():
                pass  # nobody ever waits
            case _:
                assert_never(output)

    def _do_with_process(
        self,
        output: o.CloseInstance | o.StartInstance | o.WatchProcess | o.KillProcess | o.GiveUpInstance | o.ReadPulses,
    ) -> None:
        match output:
            case o.CloseInstance(key):
                del self.instances[key]
                self.host.forget_instance(key)
            case o.StartInstance(spec):
                try:
                    self.restart(spec)
                except OSError as error:
                    self.tell(i.InstanceNotStarted(spec.instance_id, str(error)))
            case o.WatchProcess(key, pid):
                self.pids[key] = pid
            case o.KillProcess(key):
                self.killed.append(self.pids[key])
            case o.GiveUpInstance(key, reason):
                self.tell(i.InstanceEnded(key, reason, self.unread(key)))
            case o.ReadPulses():
                for key in self.instances:
                    if key in self.pulses:
                        self.tell(i.PulseRead(key, self.pulses[key]))
            case _:
                assert_never(output)


class Peer:
    """A frontend or an instance that a test plays; takes messages by type and keeps the rest in order."""

    def __init__(self, send: Callable[[Any], None]) -> None:
        self.send = send
        self.inbox: list[object] = []

    def expect(self, kind: type[T]) -> T:
        """The next message of a kind; those before it that are of other kinds stay."""
        for index, message in enumerate(self.inbox):
            if isinstance(message, kind):
                return self.inbox.pop(index)  # type: ignore[return-value]
        raise AssertionError(f"no {kind.__name__}; got {self.inbox}")

    def has(self, kind: type | tuple[type, ...]) -> bool:
        return any(isinstance(message, kind) for message in self.inbox)
