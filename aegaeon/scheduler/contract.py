"""The contract between a scheduler and its executor (``aegaeon.scheduler.scheduler``), as code that watches it.

``CheckedScheduler`` follows what the scheduler has been told and what it has said, and nothing else: what an executor
knows beyond that (a request that finished a moment ago) the scheduler need not know. The toy world of the tests, the
simulator's and the fidelity benchmark's runs, and ``aegaeon serve --check`` run under it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NoReturn, assert_never

from aegaeon.core.command import (
    Command,
    DropKv,
    EndTurn,
    EvictKv,
    EvictWeights,
    ExtendTurn,
    FetchWeights,
    LoadWeights,
    RejectRequest,
    ReleaseRequest,
    StartTurn,
)
from aegaeon.core.event import (
    Event,
    InstanceJoined,
    InstanceLost,
    KvDropped,
    KvExhausted,
    ModelFailed,
    ModelRecovered,
    RequestArrived,
    RequestCancelled,
    RequestFailed,
    RequestFinished,
    RequestPrefilled,
    TurnEnded,
    WeightsFetched,
)
from aegaeon.core.instance import InstanceSpec
from aegaeon.core.model import ModelSpec
from aegaeon.scheduler.limits import PoolLimits
from aegaeon.scheduler.scheduler import Scheduler


class ContractError(RuntimeError):
    """A scheduler said what its contract forbids; the message names the command and the rule."""


@dataclass(slots=True, eq=False)
class _WatchedRequest:
    """``on``: the instance in whose turn it is."""

    model: str
    prefilled: bool = False
    dropping: bool = False
    on: str | None = None


@dataclass(slots=True, eq=False)
class _WatchedTurn:
    turn_id: int
    model: str
    keep_prefilled: bool
    members: set[str] = field(default_factory=set)


@dataclass(slots=True, eq=False)
class _WatchedInstance:
    spec: InstanceSpec
    turn: _WatchedTurn | None = None
    resident: set[str] = field(default_factory=set)


class CheckedScheduler:
    """A ``Scheduler`` that passes every call on, and raises ``ContractError`` where the answer breaks the contract."""

    def __init__(self, scheduler: Scheduler, models: Sequence[ModelSpec], limits: PoolLimits) -> None:
        self._scheduler = scheduler
        self._weight_bytes = {model.name: model.weight_bytes for model in models}
        self._limits = limits
        self._requests: dict[str, _WatchedRequest] = {}
        self._instances: dict[str, _WatchedInstance] = {}
        self._in_host: set[str] = set()  # or on the way there
        self._fetching: set[str] = set()
        self._last_turn_id = 0

    def handle(self, event: Event, now_s: float) -> list[Command]:
        self._note(event)
        commands = self._scheduler.handle(event, now_s)
        for command in commands:
            self._check(command)
        self._check_answered(event)
        return commands

    # -- what the scheduler is told

    def _note(self, event: Event) -> None:
        match event:
            case RequestArrived():
                self._requests[event.request.request_id] = _WatchedRequest(event.request.model)
            case RequestPrefilled():
                self._note_prefilled(event)
            case RequestFinished() | RequestFailed():
                self._forget(event.request_id)
            case KvDropped():
                self._note_dropped(event.request_id)
            case TurnEnded() | InstanceJoined() | InstanceLost():
                self._note_of_instance(event)
            case ModelFailed():
                self._in_host -= self._fetching & {event.model}
                self._fetching.discard(event.model)
            case WeightsFetched():
                self._fetching.discard(event.model)
            case KvExhausted() | ModelRecovered() | RequestCancelled():
                pass
            case _:
                assert_never(event)

    def _note_of_instance(self, event: TurnEnded | InstanceJoined | InstanceLost) -> None:
        match event:
            case TurnEnded():
                self._note_turn_ended(event)
            case InstanceJoined():
                self._instances[event.instance.instance_id] = _WatchedInstance(event.instance)
            case InstanceLost():
                self._note_lost(event.instance_id)
            case _:
                assert_never(event)

    def _note_prefilled(self, event: RequestPrefilled) -> None:
        request = self._requests.get(event.request_id)
        instance = self._instances.get(event.instance_id)
        turn = instance.turn if instance is not None else None
        if request is None or turn is None or turn.turn_id != event.turn_id or event.request_id not in turn.members:
            return  # it crossed a command that took it out
        request.prefilled = True
        if not turn.keep_prefilled:
            self._leave(event.request_id)

    def _note_dropped(self, request_id: str) -> None:
        request = self._requests.get(request_id)
        if request is not None:
            request.dropping = request.prefilled = False

    def _note_turn_ended(self, event: TurnEnded) -> None:
        instance = self._instances.get(event.instance_id)
        if instance is not None and instance.turn is not None and instance.turn.turn_id == event.turn_id:
            self._end_turn(instance)

    def _note_lost(self, instance_id: str) -> None:
        instance = self._instances.pop(instance_id, None)
        if instance is not None:
            self._end_turn(instance)

    def _end_turn(self, instance: _WatchedInstance) -> None:
        for name in instance.turn.members if instance.turn is not None else ():
            self._requests[name].on = None
        instance.turn = None

    def _leave(self, request_id: str) -> None:
        request = self._requests[request_id]
        instance = self._instances.get(request.on) if request.on is not None else None
        if instance is not None and instance.turn is not None:
            instance.turn.members.discard(request_id)
        request.on = None

    def _forget(self, request_id: str) -> None:
        if request_id in self._requests:
            self._leave(request_id)
            del self._requests[request_id]

    # -- what it says

    def _check(self, command: Command) -> None:
        match command:
            case StartTurn():
                self._check_start(command)
            case ExtendTurn() | EndTurn():
                self._check_change(command)
            case LoadWeights():
                self._check_load(command)
            case EvictWeights():
                self._check_evict(command)
            case FetchWeights():
                self._check_fetch(command)
            case EvictKv():
                turn = self._instance(command.instance_id, command).turn
                self._require(not (turn and turn.members & {*command.request_ids}), command, "a member's KV is in use")
            case DropKv():
                self._check_drop(command)
            case ReleaseRequest() | RejectRequest():
                self._require(command.request_id in self._requests, command, "the request is over, or never arrived")
                self._forget(command.request_id)
            case _:
                assert_never(command)

    def _check_start(self, command: StartTurn) -> None:
        instance = self._instance(command.instance_id, command)
        self._require(command.turn_id > self._last_turn_id, command, "turns are numbered upwards")
        self._require(instance.turn is None, command, "an instance has one turn at a time")
        grouped = bool(command.prefill) and not command.keep_prefilled
        fits = len(command.prefill) <= self._limits.max_group_requests
        self._require(fits or not grouped, command, f"at most {self._limits.max_group_requests} prompts make a group")
        self._last_turn_id = command.turn_id
        instance.turn = _WatchedTurn(command.turn_id, command.model, command.keep_prefilled)
        self._make_resident(instance, command.model, command)
        self._check_members(instance, instance.turn, command)

    def _check_change(self, command: ExtendTurn | EndTurn) -> None:
        instance = self._instance(command.instance_id, command)
        turn = instance.turn
        if turn is None or turn.turn_id != command.turn_id:
            self._fail(command, "that turn is not under way")
        if isinstance(command, ExtendTurn):
            self._check_members(instance, turn, command)

    def _check_members(self, instance: _WatchedInstance, turn: _WatchedTurn, command: StartTurn | ExtendTurn) -> None:
        role = instance.spec.role
        self._require(role.prefills or not command.prefill, command, f"a {role} instance does not prefill")
        decodes = bool(command.decode) or (bool(command.prefill) and turn.keep_prefilled)
        self._require(role.decodes or not decodes, command, f"a {role} instance does not decode")
        for names, prefilled in ((command.prefill, False), (command.decode, True)):
            for name in names:
                request = self._free(name, turn.model, command)
                self._require(request.prefilled == prefilled, command, f"{name} is {'not ' * prefilled}prefilled")
                request.on = command.instance_id
                turn.members.add(name)

    def _free(self, name: str, model: str, command: Command) -> _WatchedRequest:
        """A request that may take part in something now."""
        request = self._requests.get(name)
        if request is None:
            self._fail(command, f"{name} is over, or never arrived")
        self._require(request.model == model, command, f"{name} is of {request.model}")
        self._require(request.on is None, command, f"{name} is in a turn of {request.on}")
        self._require(not request.dropping, command, f"the KV of {name} is being dropped")
        return request

    def _check_load(self, command: LoadWeights) -> None:
        instance = self._instance(command.instance_id, command)
        self._require(command.model not in instance.resident, command, "it is there already")
        self._make_resident(instance, command.model, command)
        for name in command.kv:
            request = self._free(name, command.model, command)
            self._require(request.prefilled, command, f"{name} is not prefilled")

    def _make_resident(self, instance: _WatchedInstance, model: str, command: Command) -> None:
        instance.resident.add(model)
        used_bytes = sum(self._weight_bytes[name] for name in instance.resident)
        room = len(instance.resident) <= instance.spec.max_resident_models and used_bytes <= instance.spec.weight_bytes
        self._require(room, command, f"there is no room beside {', '.join(sorted(instance.resident - {model}))}")
        self._require(not self._in_host or model in self._in_host, command, "its weights are not in host memory")

    def _check_evict(self, command: EvictWeights) -> None:
        instance = self._instance(command.instance_id, command)
        runs = instance.turn is not None and instance.turn.model == command.model
        self._require(not runs, command, "it runs")
        instance.resident.discard(command.model)

    def _check_fetch(self, command: FetchWeights) -> None:
        used = any(name in instance.resident for instance in self._instances.values() for name in command.instead_of)
        self._require(not used, command, "what is to go is on a device")
        self._require(self._in_host.issuperset(command.instead_of), command, "what is to go is not there")
        self._require(command.model not in self._in_host, command, "it is there already, or on its way")
        self._in_host.difference_update(command.instead_of)
        self._in_host.add(command.model)
        self._fetching.add(command.model)
        used_bytes = sum(self._weight_bytes[name] for name in self._in_host)
        self._require(used_bytes <= (self._limits.host_weight_bytes or 0), command, "host memory is full")

    def _check_drop(self, command: DropKv) -> None:
        request = self._requests.get(command.request_id)
        if request is None:
            self._fail(command, "the request is over, or never arrived")
        self._require(not request.dropping, command, "it is being dropped already")
        self._leave(command.request_id)
        request.dropping = True

    def _check_answered(self, event: Event) -> None:
        """Some events leave no choice."""
        match event:
            case RequestCancelled() if event.request_id in self._requests:
                raise ContractError(f"after {event}: {event.request_id} was not released")
            case ModelFailed() if left := self._of_model(event.model):
                raise ContractError(f"after {event}: {', '.join(left)} were not rejected")

    def _of_model(self, model: str) -> Iterable[str]:
        return [name for name, request in self._requests.items() if request.model == model]

    def _instance(self, instance_id: str, command: Command) -> _WatchedInstance:
        instance = self._instances.get(instance_id)
        if instance is None:
            self._fail(command, "there is no such instance (any more)")
        return instance

    def _require(self, kept: bool, command: Command, rule: str) -> None:
        if not kept:
            self._fail(command, rule)

    def _fail(self, command: Command, rule: str) -> NoReturn:
        raise ContractError(f"{command}: {rule}")
