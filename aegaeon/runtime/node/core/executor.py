"""Carries out what a scheduler wants of an instance."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import assert_never

from aegaeon.core import command as c
from aegaeon.core import event as e
from aegaeon.runtime.node.core import driver_outputs as o
from aegaeon.runtime.node.core.blocks import Blocks
from aegaeon.runtime.node.core.desk import Desk
from aegaeon.runtime.node.core.driver_request import DriverRequest
from aegaeon.runtime.node.core.frontends import Frontends
from aegaeon.runtime.node.core.incarnation import Incarnation
from aegaeon.runtime.node.core.instances import Instances
from aegaeon.runtime.node.core.requests import Requests
from aegaeon.runtime.wire import messages as m

# A suspect has a turn to itself, but the others of its model wait no longer than this for the next.
_ALONE_QUOTA_S = 1.0

InstanceCommand = c.StartTurn | c.ExtendTurn | c.EndTurn | c.LoadWeights | c.EvictWeights | c.EvictKv


class Executor:
    """Makes messages of the commands to one instance."""

    def __init__(
        self, desk: Desk, requests: Requests, instances: Instances, frontends: Frontends, blocks: Blocks
    ) -> None:
        self._desk = desk
        self._requests = requests
        self._instances = instances
        self._frontends = frontends
        self._blocks = blocks

    def execute(self, incarnation: Incarnation, command: InstanceCommand) -> None:
        """Have a present incarnation do it."""
        match command:
            case c.StartTurn():
                self._start_turn(incarnation, command)
            case c.ExtendTurn():
                self._extend_turn(incarnation, command)
            case c.EndTurn():
                self._instances.tell(incarnation, m.StopTurn(command.turn_id))
            case c.LoadWeights():
                self._load_weights(incarnation, command.model)
                self._fetch_kv(incarnation, command)
            case c.EvictWeights():
                self._evict_weights(incarnation, command.model)
            case c.EvictKv():
                self._instances.tell(incarnation, m.EvictDeviceKv(command.request_ids))
            case _:
                assert_never(command)

    # --- turns ------------------------------------------------------------------------------------------------------

    def _start_turn(self, incarnation: Incarnation, command: c.StartTurn) -> None:
        prefill, decode = self._known(command.prefill), self._known(command.decode)
        if not (prefill or decode):
            ended = e.TurnEnded(incarnation.instance_id, command.turn_id, e.TurnEndReason.DRAINED)
            self._desk.dispatch(ended)
            return
        suspect = next(iter(self._suspects((*prefill, *decode))), None)
        if suspect is None:
            self._run_turn(incarnation, replace(command, prefill=prefill, decode=decode))
        else:
            self._run_turn(incarnation, _for_one(command, suspect))
            incarnation.alone = suspect

    def _run_turn(self, incarnation: Incarnation, command: c.StartTurn) -> None:
        names = (*command.prefill, *command.decode)
        incarnation.begin(command.turn_id, command.model, command.keep_prefilled, names)
        self._load_weights(incarnation, command.model)
        message = m.RunTurn(
            command.turn_id,
            command.model,
            self._members(incarnation, command.turn_id, command.prefill),
            self._members(incarnation, command.turn_id, command.decode),
            command.quota_s,
            command.keep_prefilled,
            self._desk.now_s,
        )
        self._instances.tell(incarnation, message)

    def _extend_turn(self, incarnation: Incarnation, command: c.ExtendTurn) -> None:
        """Who does not get in is waiting still when the turn ends, as if it had ended before they came."""
        model = incarnation.model
        if incarnation.turn_id != command.turn_id or model is None or incarnation.alone is not None:
            return
        prefill, decode = self._known(command.prefill), self._known(command.decode)
        suspects = self._suspects((*prefill, *decode))
        if suspects:
            self._instances.tell(incarnation, m.StopTurn(command.turn_id))  # the next may be its own
            prefill, decode = _without(prefill, suspects), _without(decode, suspects)
        if prefill or decode:
            incarnation.members.update((*prefill, *decode))
            joining = (self._members(incarnation, command.turn_id, ids) for ids in (prefill, decode))
            self._instances.tell(incarnation, m.JoinTurn(command.turn_id, model, *joining))

    def _known(self, request_ids: tuple[str, ...]) -> tuple[str, ...]:
        """The requests without those that were over before the scheduler heard of it."""
        return tuple(request_id for request_id in request_ids if request_id in self._requests)

    def _suspects(self, request_ids: tuple[str, ...]) -> list[str]:
        return [one.request_id for one in self._requests.present(request_ids) if one.suspicion.suspected]

    def _members(self, incarnation: Incarnation, turn_id: int, request_ids: tuple[str, ...]) -> tuple[m.Member, ...]:
        return tuple(self._member(incarnation, turn_id, self._requests[request_id]) for request_id in request_ids)

    def _member(self, incarnation: Incarnation, turn_id: int, request: DriverRequest) -> m.Member:
        request.take_for(incarnation.instance_id)
        seated = self._blocks.seat(request)
        if not request.begun:
            self._blocks.begin(request)
            self._frontends.tell(request, m.Begun(request.request_id, request.cached_tokens))
        if not seated:
            self._desk.dispatch(e.KvExhausted(incarnation.instance_id, turn_id, request.request_id))
        return self._member_for(incarnation, request)

    def _member_for(self, incarnation: Incarnation, request: DriverRequest) -> m.Member:
        """The instance becomes its home; the one that was has no use for what it knows of it."""
        if request.home != incarnation.instance_id:
            self._requests.discard_at_home(request)
        return request.member_for(incarnation.instance_id, self._blocks.table(request))

    # --- what is brought in and out ---------------------------------------------------------------------------------

    def _load_weights(self, incarnation: Incarnation, model: str) -> None:
        if model not in incarnation.models:
            incarnation.models[model] = None
            self._desk.put(o.LeaseWeights(model, incarnation.key))

    def _evict_weights(self, incarnation: Incarnation, model: str) -> None:
        incarnation.models.pop(model, None)
        self._desk.put(o.CancelWeights(model, incarnation.key))
        self._instances.tell(incarnation, m.EvictModel(model))

    def _fetch_kv(self, incarnation: Incarnation, command: c.LoadWeights) -> None:
        idle = [one for one in self._requests.present(command.kv) if one.running_on is None]
        if idle:
            members = tuple(self._member_for(incarnation, request) for request in idle)
            self._instances.tell(incarnation, m.FetchKv(command.model, members))


def _for_one(command: c.StartTurn, request_id: str) -> c.StartTurn:
    """A turn with this member alone; the others are waiting still when it ends."""
    quota_s = _ALONE_QUOTA_S if command.quota_s is None else min(command.quota_s, _ALONE_QUOTA_S)
    prefill = tuple(name for name in command.prefill if name == request_id)
    decode = tuple(name for name in command.decode if name == request_id)
    return replace(command, prefill=prefill, decode=decode, quota_s=quota_s)


def _without(request_ids: tuple[str, ...], others: Collection[str]) -> tuple[str, ...]:
    return tuple(request_id for request_id in request_ids if request_id not in others)
