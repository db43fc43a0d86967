"""The driver of a node: a loop around its core, in one thread.

It reads links, pulses and what other threads post, tells the core of all of it, and does what the core answers. It
decides nothing.
"""

from __future__ import annotations

import selectors
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any, assert_never

from aegaeon.core.instance import InstanceSpec
from aegaeon.runtime.node.core import driver_inputs as i
from aegaeon.runtime.node.core import driver_outputs as o
from aegaeon.runtime.node.core.driver_core import DriverCore
from aegaeon.runtime.node.core.in_turn import InTurn
from aegaeon.runtime.node.host_weights import Fail, HostWeightCache, Post
from aegaeon.runtime.node.instance_handle import InstanceHandle
from aegaeon.runtime.node.kv_disk import KvDisk, Tell
from aegaeon.runtime.process.process_handle import ProcessHandle
from aegaeon.runtime.wire import messages as m
from aegaeon.runtime.wire.clock import Clock
from aegaeon.runtime.wire.link import Link
from aegaeon.runtime.wire.model_failure import FailureKind, ModelFailure, ModelProblem
from aegaeon.runtime.wire.wakeup import Wakeup

FrontendLink = Link[m.FromFrontend, m.ToFrontend]

_FLUSH_INTERVAL_S = 0.005  # a full ring has room again soon
_NOBODY = ""  # leases for no instance

Examine = Callable[[ModelFailure, Callable[[ModelProblem | None], None]], None]
"""``examine(failure, done)``: look, elsewhere, whether a model could be used again, and have ``done`` called on the
driver's thread with what is still wrong, or None."""


MakeDisk = Callable[[Tell], KvDisk]


def _take_their_word(_failure: ModelFailure, done: Callable[[ModelProblem | None], None]) -> None:
    """Nothing can be looked at beforehand: the next request tells."""
    done(None)


class Driver:
    """The control loop of one node.

    ``weights`` makes the node's host weight cache. ``restart(spec)`` is asked for a new process when an instance has
    died; it may raise ``OSError`` and is asked again. ``examine``: whether a model that failed is mended. ``disk``
    makes what reads and writes KV there, for a core that has such a tier.
    """

    def __init__(
        self,
        core: DriverCore,
        weights: Callable[[Post, Fail], HostWeightCache],
        clock: Clock,
        restart: Callable[[InstanceSpec], None],
        *,
        examine: Examine = _take_their_word,
        disk: MakeDisk | None = None,
    ) -> None:
        self._core = core
        self._clock = clock
        self._restart = restart
        self._examine = examine
        self.wakeup = Wakeup()
        self.weights = weights(self.wakeup.post, self._weights_failed)
        self._disk = None if disk is None else disk(lambda message: self.wakeup.post(partial(self._tell, message)))
        self._instances: dict[str, InstanceHandle] = {}  # by their keys
        self._frontends: dict[str, FrontendLink] = {}
        self._inputs = InTurn(self._have_decided)
        self._running = True
        self._selector = selectors.DefaultSelector()
        self._selector.register(self.wakeup.fd, selectors.EVENT_READ, self.wakeup.run)

    @property
    def ready_instances(self) -> int:
        """How many instances are up; any thread may ask."""
        return self._core.ready_instances

    @property
    def idle(self) -> bool:
        """Whether no request is under way; for the loop's own thread."""
        return self._core.idle

    # --- the loop ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Handle messages until ``stop``."""
        while self._running:
            self.go_on(self._timeout_s())
        self._close()

    def go_on(self, timeout_s: float | None = 0.0) -> None:
        """Handle what is there, or comes within ``timeout_s`` (None: whenever it comes)."""
        for key, _ in self._selector.select(timeout_s):
            key.data()
        self._tell(i.TimeCame())
        for link in self._links():
            if link.pending:
                link.flush()

    def stop(self) -> None:
        """End the loop, shutting the instances down; any thread may call this."""
        self.wakeup.post(self._stop)

    def _stop(self) -> None:
        self._running = False
        for handle in self._instances.values():
            handle.link.send(m.Shutdown())

    def _close(self) -> None:
        self._selector.close()
        self.wakeup.close()
        self.weights.close()
        if self._disk is not None:
            self._disk.close()
        for handle in self._instances.values():
            handle.close()
        for link in self._frontends.values():
            link.close()

    def _timeout_s(self) -> float | None:
        if any(link.pending for link in self._links()):
            return _FLUSH_INTERVAL_S
        due_s = self._core.next_due_s
        return None if due_s is None else max(0.0, due_s - self._clock.now_s())

    def _links(self) -> Iterable[Link[Any, Any]]:
        yield from (handle.link for handle in self._instances.values())
        yield from self._frontends.values()

    # --- what happens -----------------------------------------------------------------------------------------------

    def add_instance(self, handle: InstanceHandle) -> None:
        """A new process is on its way; it reports ``Started`` over its link."""
        self._instances[handle.key] = handle
        self._watch(handle.link.data_fd, lambda: self._drain_instance(handle))
        self._tell(i.InstanceAdded(handle.spec, handle.incarnation, handle.pulse is not None))

    def add_frontend(self, frontend_id: str, link: FrontendLink) -> None:
        """A frontend is opening its link; it is there until it says otherwise, or its end of the link is closed."""
        self._frontends[frontend_id] = link
        self._watch(link.peer_fd, lambda: self._tell(i.FrontendLost(frontend_id)))
        self._watch(link.data_fd, lambda: self._drain_frontend(frontend_id, link))
        self._tell(i.FrontendOpened(frontend_id))

    def instance_died(self, key: str, reason: str) -> None:
        """The process of an incarnation has ended unasked."""
        handle = self._instances.get(key)
        if handle is not None and self._running:
            self._tell(i.InstanceEnded(key, reason, tuple(handle.link.drain())))

    def _drain_instance(self, handle: InstanceHandle) -> None:
        if handle.key in self._instances:  # else it died in this very round, and has been heard
            for message in handle.link.drain():
                self._tell(i.InstanceSaid(handle.key, message))

    def _drain_frontend(self, frontend_id: str, link: FrontendLink) -> None:
        if self._frontends.get(frontend_id) is link:  # else it was lost in this very round
            for message in tuple(link.drain()):
                self._tell(i.FrontendSaid(frontend_id, message))

    def _weights_failed(self, model: str, reason: str, kind: FailureKind) -> None:
        self._tell(i.WeightsUnreadable(model, reason, kind))

    def _watch(self, fd: int, act: Callable[[], None]) -> None:
        self._selector.register(fd, selectors.EVENT_READ, act)

    def _tell(self, message: i.DriverInput) -> None:
        """Tell the core, and do what it answers. What comes of that at once is told when all of it has been done."""
        self._inputs.put(message)

    def _have_decided(self, message: i.DriverInput) -> None:
        for output in self._core.receive(message, self._clock.now_s()):
            self._do(output)

    # --- what is done -----------------------------------------------------------------------------------------------

    def _do(self, output: o.DriverOutput) -> None:
        match output:
            case o.TellInstance():
                self._instances[output.key].link.send(output.message)
            case o.TellFrontend():
                self._frontends[output.frontend_id].send(output.message)
            case o.ReportState():
                self._report(output.state)
            case o.CloseFrontend():
                self._close_frontend(output.frontend_id)
            case o.ExamineModel(failure):
                self._examine(failure, lambda problem: self._tell(i.ModelExamined(failure, problem)))
            case o.Crash():
                raise output.error
            case o.LeaseWeights() | o.CancelWeights() | o.GiveBackWeights() | o.ReadWeights() | o.DropWeights():
                self._do_with_weights(output)
            case o.CopyKv() | o.WriteKv() | o.RemoveKv() | o.ReadKv():
                assert self._disk is not None, "nothing was found on it"
                self._disk.do(output)
            case _:
                self._do_with_process(output)

    def _do_with_weights(
        self, output: o.LeaseWeights | o.CancelWeights | o.GiveBackWeights | o.ReadWeights | o.DropWeights
    ) -> None:
        match output:
            case o.LeaseWeights():
                self.weights.lease(output.model, output.key, self._instances[output.key].link.send)
            case o.CancelWeights():
                self.weights.cancel(output.model, output.key)
            case o.GiveBackWeights():
                self.weights.give_back(output.lease_id)
            case o.ReadWeights():
                self.weights.lease(output.model, _NOBODY, self._weights_read)
            case o.DropWeights():
                self.weights.drop(output.models)
            case _:
                assert_never(output)

    def _weights_read(self, weights: m.HostWeights) -> None:
        self.weights.give_back(weights.lease_id)
        self._tell(i.WeightsRead(weights.model))

    def _do_with_process(
        self,
        output: o.CloseInstance | o.StartInstance | o.WatchProcess | o.KillProcess | o.GiveUpInstance | o.ReadPulses,
    ) -> None:
        match output:
            case o.CloseInstance():
                self._close_instance(output.key)
            case o.StartInstance():
                self._start_instance(output.spec)
            case o.WatchProcess():
                self._watch_process(self._instances[output.key], output.pid)
            case o.KillProcess():
                process = self._instances[output.key].process
                if process is not None:
                    process.kill()
            case o.GiveUpInstance():
                self.instance_died(output.key, output.reason)
            case o.ReadPulses():
                for key, handle in self._instances.items():
                    if handle.pulse is not None:
                        self._tell(i.PulseRead(key, handle.pulse.read()))
            case _:
                assert_never(output)

    def _start_instance(self, spec: InstanceSpec) -> None:
        try:
            self._restart(spec)
        except OSError as error:  # no descriptor left for its link
            self._tell(i.InstanceNotStarted(spec.instance_id, f"cannot be started: {error}"))

    def _watch_process(self, handle: InstanceHandle, pid: int) -> None:
        handle.process = ProcessHandle(pid)
        if handle.process.fd is not None:
            self._watch(handle.process.fd, lambda: self.instance_died(handle.key, "its process ended"))

    def _close_instance(self, key: str) -> None:
        handle = self._instances.pop(key)
        self._selector.unregister(handle.link.data_fd)
        if handle.process is not None and handle.process.fd is not None:
            self._selector.unregister(handle.process.fd)
        handle.close()
        self.weights.forget_instance(key)

    def _close_frontend(self, frontend_id: str) -> None:
        link = self._frontends.pop(frontend_id)
        self._selector.unregister(link.data_fd)
        self._selector.unregister(link.peer_fd)
        link.close()

    def _report(self, state: m.NodeState) -> None:
        full = replace(state, weights_cached=self.weights.cached, weights_bytes=self.weights.used_bytes)
        for link in self._frontends.values():
            link.send(full)
