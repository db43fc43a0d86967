"""What instances report to their driver, and what that means for their requests."""

from __future__ import annotations

from typing import assert_never

from aegaeon.core import event as e
from aegaeon.runtime.node.core import driver_outputs as o
from aegaeon.runtime.node.core.blocks import Blocks
from aegaeon.runtime.node.core.desk import Desk
from aegaeon.runtime.node.core.driver_request import DriverRequest
from aegaeon.runtime.node.core.frontends import Frontends
from aegaeon.runtime.node.core.incarnation import Incarnation
from aegaeon.runtime.node.core.instances import Instances
from aegaeon.runtime.node.core.quarantine import Quarantine
from aegaeon.runtime.node.core.request_state import RequestHappening
from aegaeon.runtime.node.core.requests import Requests
from aegaeon.runtime.wire import messages as m


class InstanceReports:
    """Keeps the books of requests by them, and makes events of them."""

    def __init__(
        self,
        desk: Desk,
        requests: Requests,
        instances: Instances,
        frontends: Frontends,
        blocks: Blocks,
        quarantine: Quarantine,
    ) -> None:
        self._desk = desk
        self._requests = requests
        self._instances = instances
        self._frontends = frontends
        self._blocks = blocks
        self._quarantine = quarantine

    def take(self, incarnation: Incarnation, message: m.FromInstance) -> None:
        """A message of a present incarnation."""
        self._desk.changed = True
        match message:
            case m.Prefilled():
                self._prefilled(incarnation, message)
            case m.SequenceFinished():
                self._finished(incarnation, message)
            case m.SequenceFailed():
                self._failed(incarnation, message)
            case m.TurnOver():
                self._turn_over(incarnation, message)
            case m.NeedBlocks():
                self._need_blocks(incarnation, message)
            case m.Forgotten():
                self._forgotten(incarnation, message)
            case _:
                self._take_other(incarnation, message)

    def _take_other(
        self, incarnation: Incarnation, message: m.Started | m.Attempt | m.WeightsReturned | m.WeightsRefused
    ) -> None:
        match message:
            case m.Started():
                self._instances.started(incarnation, message.pid)
                self._desk.dispatch(e.InstanceJoined(incarnation.spec))
            case m.Attempt():
                self._attempted(incarnation, message)
            case m.WeightsReturned():
                self._desk.put(o.GiveBackWeights(message.lease_id))
            case m.WeightsRefused():
                incarnation.models.pop(message.model, None)
                if message.lease_id is not None:
                    self._desk.put(o.GiveBackWeights(message.lease_id))
                self._quarantine.fail(message.model, message.reason, message.kind)
            case _:
                assert_never(message)

    def _attempted(self, incarnation: Incarnation, message: m.Attempt) -> None:
        if incarnation.turn_id == message.turn_id:
            incarnation.attempted = message.request_ids
            if message.request_ids and incarnation.model is not None:
                self._quarantine.bound(incarnation.model)

    def _prefilled(self, incarnation: Incarnation, message: m.Prefilled) -> None:
        request = self._requests.get(message.progress.request_id)
        if request is None:
            return
        self._requests.advance((message.progress,))
        request.prefilled = True
        self._requests.admit_followers(request)
        self._quarantine.works(request.model)
        if not request.free:
            return  # the instance has yet to say that it has forgotten it
        if not incarnation.keep_prefilled:
            incarnation.members.discard(request.request_id)
            self._leave(incarnation, request)
        self._desk.dispatch(
            e.RequestPrefilled(incarnation.instance_id, message.turn_id, request.request_id, request.context_tokens)
        )

    def _finished(self, incarnation: Incarnation, message: m.SequenceFinished) -> None:
        request = self._requests.get(message.progress.request_id)
        if request is None:
            return
        self._requests.advance((message.progress,))
        self._quarantine.works(request.model)
        if self._end(incarnation, request):
            self._desk.dispatch(e.RequestFinished(incarnation.instance_id, message.turn_id, request.request_id))

    def _failed(self, incarnation: Incarnation, message: m.SequenceFailed) -> None:
        request = self._requests.get(message.request_id)
        if request is None:
            return
        self._frontends.tell(request, m.Failed(message.request_id, message.reason, message.cause))
        if self._end(incarnation, request):
            self._desk.dispatch(e.RequestFailed(message.request_id, message.reason))

    def _end(self, incarnation: Incarnation, request: DriverRequest) -> bool:
        """An instance has let go of a request that is over; False where the scheduler knows."""
        incarnation.members.discard(request.request_id)
        known = request.releasing
        self._requests.end(request)
        return not known

    def _turn_over(self, incarnation: Incarnation, message: m.TurnOver) -> None:
        members = incarnation.members
        incarnation.end(message.switched)
        self._requests.advance(message.progress)
        if incarnation.model is not None and any(progress.new_ids or progress.beams for progress in message.progress):
            self._quarantine.works(incarnation.model)
        for request in self._requests.present(members):
            self._leave(incarnation, request)
        contexts = tuple(
            (request.request_id, request.context_tokens)
            for request in self._requests.present(progress.request_id for progress in message.progress)
            if request.request_id not in message.unfinished and request.free
        )
        self._desk.dispatch(
            e.TurnEnded(incarnation.instance_id, message.turn_id, message.reason, contexts, message.timing)
        )

    def _leave(self, incarnation: Incarnation, request: DriverRequest) -> None:
        """It is in this instance's turn no more, unless the instance has yet to say that it has forgotten it."""
        if request.runs and request.running_on == incarnation.instance_id:
            request.note(RequestHappening.LEFT)

    def _need_blocks(self, incarnation: Incarnation, message: m.NeedBlocks) -> None:
        request = self._requests.get(message.request_id)
        if request is None or request.running_on != incarnation.instance_id or not request.runs:
            return
        if not self._blocks.need(request, message.tokens):
            self._desk.dispatch(e.KvExhausted(incarnation.instance_id, message.turn_id, request.request_id))

    def _forgotten(self, incarnation: Incarnation, message: m.Forgotten) -> None:
        self._requests.advance(message.progress)
        for request in self._requests.present(message.request_ids):
            if not request.free and request.running_on == incarnation.instance_id:
                self._requests.let_go(request)
