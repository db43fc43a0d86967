"""What a driver decides, without doing any of it: messages in, the scheduler's events, its commands out as messages.

    outputs = core.receive(InstanceSaid("i0:0", TurnOver(...)), now_s)

Pure: no clock, no link, no thread. Whoever owns one tells it all that happens, in order and with the time, does what it
answers, in order, and comes back at ``next_due_s``. It owns the scheduler, the requests and the books of their blocks;
what to run where is the scheduler's.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import assert_never

from aegaeon.core import command as c
from aegaeon.core import event as e
from aegaeon.core.generation import FinishReason
from aegaeon.core.model import ModelSpec
from aegaeon.engine.sampling.stop import finish_reason
from aegaeon.runtime.node.core import driver_inputs as i
from aegaeon.runtime.node.core import driver_outputs as o
from aegaeon.runtime.node.core.blocks import Blocks, KvLedger
from aegaeon.runtime.node.core.desk import Desk
from aegaeon.runtime.node.core.disk_kv import DiskKv, DiskTier
from aegaeon.runtime.node.core.driver_request import DriverRequest
from aegaeon.runtime.node.core.executor import Executor
from aegaeon.runtime.node.core.frontends import Frontends
from aegaeon.runtime.node.core.instance_reports import InstanceReports
from aegaeon.runtime.node.core.instances import Instances
from aegaeon.runtime.node.core.losses import Losses
from aegaeon.runtime.node.core.quarantine import Quarantine
from aegaeon.runtime.node.core.requests import Requests
from aegaeon.runtime.wire import messages as m
from aegaeon.scheduler.scheduler import Scheduler

logger = logging.getLogger(__name__)

_REPORT_INTERVAL_S = 0.25


class DriverCore:
    """The control of one node.

    ``eos_ids``: the tokens that end an output, by model. An instance that is stuck for ``instance_timeout_s`` is
    killed. With ``check`` the books are checked whenever no request is under way. ``disk``: KV is kept there, too.
    """

    def __init__(
        self,
        models: Mapping[str, ModelSpec],
        scheduler: Scheduler,
        kv: KvLedger,
        eos_ids: Mapping[str, Collection[int]] = MappingProxyType({}),
        *,
        instance_timeout_s: float = 10.0,
        check: bool = False,
        disk: DiskTier | None = None,
    ) -> None:
        self._scheduler = scheduler
        self._kv = kv
        self._eos_ids = eos_ids
        self._check = check
        self._reported_s = float("-inf")
        self._desk = Desk(self._decide)
        self._instances = Instances(self._desk, instance_timeout_s)
        self._frontends = Frontends(self._desk)
        self._blocks = Blocks(self._desk, kv, models, self._instances)
        self._disk = DiskKv(self._desk, kv, models, self._blocks, disk)
        self._requests = Requests(self._desk, self._instances, self._blocks, self._disk)
        self._quarantine = Quarantine(self._desk, self._instances, self._frontends)
        self._reports = InstanceReports(
            self._desk, self._requests, self._instances, self._frontends, self._blocks, self._quarantine
        )
        self._losses = Losses(
            self._desk, self._requests, self._instances, self._frontends, self._quarantine, self._finish_reason
        )
        self._executor = Executor(self._desk, self._requests, self._instances, self._frontends, self._blocks)

    # --- what whoever owns it needs ---------------------------------------------------------------------------------

    def receive(self, message: i.DriverInput, now_s: float) -> list[o.DriverOutput]:
        """Take note of what happened at ``now_s``; what is to be done, in order.

        An error is the last thing to be done: what came before it is still worth saying.
        """
        desk = self._desk
        desk.now_s = now_s
        requests = len(self._requests)
        try:
            self._take(message)
            self._losses.settle()
            if self._check and requests and self.idle:
                self.check_idle()
        except Exception as error:
            logger.exception("this driver's books cannot be trusted any more: it ends")
            desk.put(o.Crash(error))
        return desk.take_outputs()

    @property
    def next_due_s(self) -> float | None:
        """When ``TimeCame`` is wanted, whatever else happens; None: never."""
        dues_s = [] if self._desk.timers.next_s is None else [self._desk.timers.next_s]
        if self._desk.changed:
            dues_s.append(self._reported_s + _REPORT_INTERVAL_S)
        return min(dues_s, default=None)

    @property
    def ready_instances(self) -> int:
        """How many instances are up; any thread may ask."""
        return self._instances.ready

    @property
    def idle(self) -> bool:
        """Whether no request is under way."""
        return not len(self._requests)

    def check_idle(self) -> None:
        """Raises ``LedgerError`` where something of requests is left though none is under way."""
        self._blocks.check_idle(self._disk.tables)

    # --- inputs -----------------------------------------------------------------------------------------------------

    def _take(self, message: i.DriverInput) -> None:
        match message:
            case i.FrontendSaid():
                if message.frontend_id in self._frontends:
                    self._take_from_frontend(message.frontend_id, message.message)
            case i.InstanceSaid():
                incarnation = self._instances.by_key(message.key)
                if incarnation is not None:
                    self._reports.take(incarnation, message.message)
            case i.FrontendOpened():
                self._open_frontend(message.frontend_id)
            case i.FrontendLost():
                self._lose_frontend(message.frontend_id)
            case i.KvFound() | i.KvCopied() | i.KvWritten() | i.KvRead():
                self._disk.take(message)
            case i.TimeCame():
                self._desk.timers.run(self._desk.now_s)
                self._report()
            case _:
                self._take_of_processes(message)

    def _take_of_processes(
        self,
        message: i.InstanceAdded
        | i.InstanceEnded
        | i.InstanceNotStarted
        | i.PulseRead
        | i.WeightsRead
        | i.WeightsUnreadable
        | i.ModelExamined,
    ) -> None:
        match message:
            case i.InstanceAdded():
                incarnation = self._instances.add(message.spec, message.incarnation, message.watched)
                for attached in self._frontends.attached.values():
                    self._instances.tell(incarnation, attached)
            case i.InstanceEnded():
                self._lose_instance(message)
            case i.InstanceNotStarted():
                self._instances.not_started(message.instance_id, message.reason)
            case i.PulseRead():
                looked_at = self._instances.by_key(message.key)
                if looked_at is not None:
                    self._instances.look_at(looked_at, message.reading)
            case i.WeightsRead():
                self._desk.dispatch(e.WeightsFetched(message.model))
            case i.WeightsUnreadable():
                self._quarantine.fail(message.model, message.reason, message.kind)
            case i.ModelExamined():
                self._quarantine.examined(message.failure, message.problem)
            case _:
                assert_never(message)

    def _open_frontend(self, frontend_id: str) -> None:
        self._frontends.add(frontend_id)
        for state in self._quarantine.states:
            self._frontends.tell_one(frontend_id, state)

    def _lose_frontend(self, frontend_id: str) -> None:
        """A frontend has gone or died: its requests are cancelled, also those that it was to say something about."""
        if not self._frontends.remove(frontend_id):
            return
        self._instances.tell_all(m.DetachFrontend(frontend_id))
        for request in [one for one in self._requests if one.submit.frontend_id == frontend_id]:
            self._requests.cancel(request)

    def _lose_instance(self, message: i.InstanceEnded) -> None:
        """The process of an incarnation has ended unasked."""
        incarnation = self._instances.by_key(message.key)
        if incarnation is None:
            return
        reason = incarnation.verdict or message.reason
        logger.warning("instance %s died: %s", message.key, reason)
        turn_id = incarnation.turn_id
        for unread in message.unread:
            self._reports.take(incarnation, unread)
        self._instances.part_with(incarnation, reason)
        # A turn that was given to it meanwhile has never reached it.
        involved = self._losses.involved(incarnation) if incarnation.turn_id == turn_id else ()
        self._losses.interrupt(incarnation, reason, involved)
        self._frontends.tell_all(m.InstanceGone(message.key))

    # --- messages from frontends ------------------------------------------------------------------------------------

    def _take_from_frontend(self, frontend_id: str, message: m.FromFrontend) -> None:
        match message:
            case m.Submit():
                self._submit(message)
            case m.Cancel():
                for request in self._requests.present((message.request_id,)):
                    self._requests.cancel(request)
            case m.Resume():
                self._losses.resume(message)
            case m.AttachFrontend():
                self._frontends.attached[message.frontend_id] = message
                self._instances.tell_all(message)
            case m.DetachFrontend():
                self._lose_frontend(frontend_id)
            case _:
                assert_never(message)

    def _submit(self, message: m.Submit) -> None:
        request = DriverRequest(message)
        known = self._requests.get(request.request_id)
        if known is not None:
            self._submitted_again(known, message)
            return
        reason = self._finish_reason(request)
        if reason is not None:
            self._frontends.tell(request, m.Finished(request.request_id, reason, len(request.generated_ids)))
            return
        self._requests.add(request)
        if request.request_id in self._requests:
            self._frontends.tell(request, m.Accepted(request.request_id))

    def _submitted_again(self, known: DriverRequest, message: m.Submit) -> None:
        """A frontend that did not know that we have its request; another's would take the tokens of the first."""
        if known.submit.frontend_id == message.frontend_id and not known.releasing:
            self._frontends.tell(known, m.Accepted(known.request_id))
        else:
            reason = f"a request with the id {known.request_id} is under way already"
            self._frontends.tell_one(message.frontend_id, m.Failed(known.request_id, reason))

    def _finish_reason(self, request: DriverRequest) -> FinishReason | None:
        return finish_reason(request.submit.sampling, self._eos_ids.get(request.model, ()), request.generated_ids)

    # --- events and commands ----------------------------------------------------------------------------------------

    def _decide(self, event: e.Event) -> None:
        try:
            for command in self._scheduler.handle(event, self._desk.now_s):
                self._execute(command)
        except Exception as error:
            self._fail_for(event, error)
            raise

    def _fail_for(self, event: e.Event, error: Exception) -> None:
        """What is known of requests cannot be trusted any more: this driver ends, and the next gets them all again.
        But not the one whose event this was, of which that one would end, too."""
        about = event.request if isinstance(event, e.RequestArrived) else event
        request = self._requests.get(getattr(about, "request_id", ""))
        if request is not None:
            reason = f"the driver failed over this request ({type(error).__name__}: {error})"
            self._frontends.tell(request, m.Failed(request.request_id, reason))

    def _execute(self, command: c.Command) -> None:
        match command:
            case c.DropKv():
                self._give_up(command.request_id, release=False)
            case c.ReleaseRequest():
                self._give_up(command.request_id, release=True)
            case c.RejectRequest():
                self._reject(command)
            case c.FetchWeights():
                self._desk.put(o.DropWeights(command.instead_of))
                self._desk.put(o.ReadWeights(command.model))
            case _:
                incarnation = self._instances.get(command.instance_id)
                if incarnation is not None:
                    self._executor.execute(incarnation, command)
                elif isinstance(command, c.StartTurn | c.ExtendTurn):
                    self._losses.miss(command.instance_id, (*command.prefill, *command.decode))

    def _give_up(self, request_id: str, *, release: bool) -> None:
        request = self._requests.get(request_id)
        if request is not None:
            self._requests.give_up(request, release=release)

    def _reject(self, command: c.RejectRequest) -> None:
        request = self._requests.get(command.request_id)
        if request is not None:
            retry_after_s = command.retry_after_s
            if command.reason is c.RejectReason.MODEL_FAILED:
                retry_after_s = self._quarantine.retry_after_s(request.model)
            rejected = m.Rejected(command.request_id, command.reason, command.detail, retry_after_s)
            self._frontends.tell(request, rejected)
            self._requests.give_up(request, release=True)

    # --- reports ----------------------------------------------------------------------------------------------------

    def _report(self) -> None:
        now_s = self._desk.now_s
        if not self._desk.changed or now_s - self._reported_s < _REPORT_INTERVAL_S:
            return
        self._desk.changed, self._reported_s = False, now_s
        state = m.NodeState(
            now_s,
            self._instances.states(),
            self._requests.counts(running=False),
            self._requests.counts(running=True),
            self._kv.counts,
            self._blocks.prompt_tokens,
            self._blocks.cached_tokens,
            weights_cached=(),
            weights_bytes=0,
            disk=self._disk.counts,
        )
        self._desk.put(o.ReportState(state))
