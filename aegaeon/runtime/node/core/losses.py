"""Incarnations that died, and how their requests go on: the frontend knows which tokens the client has."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from aegaeon.core import event as e
from aegaeon.core.generation import FinishReason
from aegaeon.runtime.node.core.desk import Desk
from aegaeon.runtime.node.core.driver_request import DriverRequest
from aegaeon.runtime.node.core.frontends import Frontends
from aegaeon.runtime.node.core.incarnation import Incarnation
from aegaeon.runtime.node.core.instances import Instances
from aegaeon.runtime.node.core.quarantine import Quarantine
from aegaeon.runtime.node.core.request_state import DriverRequestState, RequestHappening
from aegaeon.runtime.node.core.requests import Requests
from aegaeon.runtime.wire import messages as m

logger = logging.getLogger(__name__)

Whole = Callable[[DriverRequest], FinishReason | None]


@dataclass(frozen=True, slots=True)
class Loss:
    """An incarnation that died, and of what: the members of the turn that it was in or that the scheduler has given it
    since, those of them that it died with, and those whose frontends have yet to answer."""

    incarnation: Incarnation
    reason: str
    members: dict[str, None]
    involved: frozenset[str]
    unanswered: set[str]


class Losses:
    """The losses that are not settled: the scheduler hears of a loss when all frontends have answered.

    ``whole`` says why the output of a request has ended, where it has by its tokens.
    """

    def __init__(
        self,
        desk: Desk,
        requests: Requests,
        instances: Instances,
        frontends: Frontends,
        quarantine: Quarantine,
        whole: Whole,
    ) -> None:
        self._desk = desk
        self._requests = requests
        self._instances = instances
        self._frontends = frontends
        self._quarantine = quarantine
        self._whole = whole
        self._open: dict[str, Loss] = {}

    def interrupt(self, incarnation: Incarnation, reason: str, involved: Iterable[str]) -> None:
        """An incarnation has died. Ask the frontends how far the requests had come."""
        members = [request for request in self._requests if request.running_on == incarnation.instance_id]
        for request in self._requests:
            if request.home == incarnation.instance_id:
                request.home = None
        for request in members:
            request.note(RequestHappening.DIED)
        asked = [request for request in members if request.state is not DriverRequestState.OVER]
        names = [request.request_id for request in asked]
        self._open[incarnation.key] = Loss(incarnation, reason, dict.fromkeys(names), frozenset(involved), set(names))
        for request in asked:
            self._frontends.tell(request, m.Interrupted(request.request_id, incarnation.key))
        for request in members:
            if request.state is DriverRequestState.OVER:
                self._requests.delete(request)

    def involved(self, incarnation: Incarnation) -> Collection[str]:
        """The requests that an instance died with; where it was binding a model, that is noted instead."""
        if incarnation.attempted is None:
            return tuple(incarnation.members)
        if not incarnation.attempted and incarnation.model is not None:
            self._quarantine.died_in_binding(incarnation.model)
        return [request_id for request_id in incarnation.attempted if request_id in incarnation.members]

    def miss(self, instance_id: str, request_ids: Iterable[str]) -> None:
        """The instance has died, and the scheduler is about to hear of it: what it was to take loses nothing."""
        for loss in self._open.values():
            if loss.incarnation.instance_id == instance_id:
                loss.members.update(dict.fromkeys(request_ids))

    def resume(self, message: m.Resume) -> None:
        """A frontend says what a client has."""
        request = self._requests.get(message.request_id)
        for loss in self._open.values():
            if message.request_id in loss.unanswered:
                loss.unanswered.discard(message.request_id)
                if request is not None:
                    self._requests.resume(request, message.generated_ids)

    def settle(self) -> None:
        """Settle those of whose requests everything is known: they are over, or their frontends have answered."""
        while (loss := next((one for one in self._open.values() if self._answered(one)), None)) is not None:
            del self._open[loss.incarnation.key]
            self._settle(loss)

    def _answered(self, loss: Loss) -> bool:
        loss.unanswered.intersection_update([request.request_id for request in self._requests])
        return not loss.unanswered

    def _settle(self, loss: Loss) -> None:
        instance_id = loss.incarnation.instance_id
        for request in self._requests.present(loss.involved):
            request.suspicion.note_death(request.output_tokens, request.kv_tokens)
        for request in self._requests.present(loss.members):
            self._end_if_over(loss, request)
        left = self._requests.present(loss.members)
        survivors = tuple((one.request_id, one.context_tokens) for one in left if one.prefilled and one.free)
        self._desk.dispatch(e.InstanceLost(instance_id, survivors))
        for request in self._requests.present(loss.members):
            if request.state is DriverRequestState.UNSETTLED:
                self._requests.let_go(request)
        # Only now: until the scheduler knows of the loss, its commands to the instance must find nobody.
        self._instances.start_again(instance_id)

    def _end_if_over(self, loss: Loss, request: DriverRequest) -> None:
        """End a request that has all its tokens, or that instances have died of."""
        reason = self._whole(request)
        if reason is not None:
            self._finish_for(loss.incarnation, request, reason)
        elif loss.incarnation.alone == request.request_id and request.suspicion.proven:
            self._condemn(loss, request)

    def _finish_for(self, incarnation: Incarnation, request: DriverRequest, reason: FinishReason) -> None:
        """Say in place of an instance that died that a request is done."""
        made = len(request.generated_ids)
        self._frontends.tell(request, m.Finished(request.request_id, reason, made, request.cached_tokens))
        known = not request.releasing
        self._requests.end(request)
        if known:
            self._desk.dispatch(
                e.RequestFinished(incarnation.instance_id, incarnation.turn_id or 0, request.request_id)
            )

    def _condemn(self, loss: Loss, request: DriverRequest) -> None:
        """It was in the step at each of several deaths, the last time alone: the model and the others go on."""
        reason = (
            f"{request.suspicion.deaths} instances died while they ran this request, the last one while it ran alone: "
            f"{loss.reason}"
        )
        logger.error("request %s of model %s fails: %s", request.request_id, request.model, reason)
        self._frontends.tell(request, m.Failed(request.request_id, reason))
        self._requests.end(request)
        self._desk.dispatch(e.RequestFailed(request.request_id, reason))
        self._quarantine.died_alone(request.model, request.request_id)
