"""The policy ``slack``: the least slack first, as lazily as deadlines allow, on many resident models.

Every event first corrects what is known of requests, models and instances. Then members that became free join a
running turn of their model where they can, idle instances begin the most urgent model on their device, and idle copy
engines bring in the most urgent model that no device serves (``planner.py``).

Does not know: the clock, who carries out its commands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from operator import attrgetter
from typing import assert_never

from aegaeon.core.command import Command, DropKv, RejectReason, RejectRequest, ReleaseRequest
from aegaeon.core.cost import CostModel
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
    TurnEndReason,
    WeightsFetched,
)
from aegaeon.core.model import ModelSpec
from aegaeon.core.request import Request
from aegaeon.scheduler.admission import misfit, overload, unknown_model
from aegaeon.scheduler.drain import Drain
from aegaeon.scheduler.facts import model_facts
from aegaeon.scheduler.job import Phase
from aegaeon.scheduler.limits import PoolLimits
from aegaeon.scheduler.slab_budget import SlabBudget
from aegaeon.scheduler.slack.account import Account
from aegaeon.scheduler.slack.agenda import Agenda
from aegaeon.scheduler.slack.host_memory import HostMemory
from aegaeon.scheduler.slack.instance import Instance
from aegaeon.scheduler.slack.member import Member
from aegaeon.scheduler.slack.model_state import ModelState
from aegaeon.scheduler.slack.planner import Planner
from aegaeon.scheduler.slack.prompt_gate import PromptGate
from aegaeon.scheduler.slack.room import Room
from aegaeon.scheduler.slack.tuning import Tuning
from aegaeon.scheduler.slack.turn import Turn
from aegaeon.scheduler.slack.urgency import Urgency


class SlackScheduler:
    """A ``Scheduler``; see the module docstring and the contract in ``aegaeon.scheduler.scheduler``."""

    def __init__(
        self, models: Sequence[ModelSpec], costs: CostModel, limits: PoolLimits, tuning: Tuning | None = None
    ) -> None:
        tuning = tuning or Tuning()
        self._limits = limits
        self._max_residents = tuning.max_residents
        self._costs = costs
        of_all = Account()
        self._models = {
            name: ModelState(facts, order, costs.decode_step_s(name, 0, 1), of_all=of_all)
            for order, (name, facts) in enumerate(model_facts(models).items())
        }
        self._members: dict[str, Member] = {}
        self._instances: dict[str, Instance] = {}  # in order of joining
        self._failures: dict[str, str] = {}  # failed models and why
        self._slabs = SlabBudget(limits)
        steps_s = [model.step_s for model in self._models.values()]
        self._urgency = urgency = Urgency(costs, tuning, sum(steps_s) / max(1, len(steps_s)))
        self._agenda = agenda = Agenda(urgency.key_s)
        self._room = Room(self._models, costs)
        self._host = HostMemory(limits.host_weight_bytes, self._room, self._instances, tuning.patience_s)
        self._gate = PromptGate(self._slabs, self._instances, agenda)
        self._planner = Planner(
            models=self._models,
            instances=self._instances,
            agenda=agenda,
            room=self._room,
            host=self._host,
            gate=self._gate,
            costs=costs,
            urgency=urgency,
            limits=limits,
            tuning=tuning,
        )
        self._arrivals = count()
        self._joins = count()
        self._unprefilled: dict[str, float] = {}  # with what their prompts take, in seconds
        self._unprefilled_s = 0.0
        self._drain = Drain()  # of those
        self._freed: dict[str, ModelState] = {}  # models whose members the present event made free to take a turn
        self._look = False
        self._now_s = 0.0
        self._out: list[Command] = []

    def handle(self, event: Event, now_s: float) -> list[Command]:
        self._now_s, self._out = now_s, []
        self._look = False
        self._freed.clear()
        self._note(event)
        for model in self._freed.values():
            self._planner.extend(model, now_s, self._out)
        if self._look or self._freed:
            self._planner.advance(now_s, self._out)
        return self._out

    def _note(self, event: Event) -> None:
        match event:
            case RequestArrived():
                self._on_arrived(event.request)
            case RequestPrefilled() | RequestFinished() | RequestFailed() | RequestCancelled():
                self._note_of_request(event)
            case KvExhausted() | KvDropped():
                self._note_of_kv(event)
            case TurnEnded():
                self._on_turn_ended(event)
            case InstanceJoined() | InstanceLost() | ModelFailed() | ModelRecovered() | WeightsFetched():
                self._note_of_pool(event)
            case _:
                assert_never(event)

    def _note_of_request(self, event: RequestPrefilled | RequestFinished | RequestFailed | RequestCancelled) -> None:
        member = self._members.get(event.request_id)
        if member is None:
            return  # the event crossed a command that ended the request
        match event:
            case RequestPrefilled():
                self._on_prefilled(member, event)
            case RequestFinished() | RequestFailed():
                self._forget(member)
            case RequestCancelled():
                self._forget(member)
                self._out.append(ReleaseRequest(member.request_id))
            case _:
                assert_never(event)

    def _note_of_kv(self, event: KvExhausted | KvDropped) -> None:
        member = self._members.get(event.request_id)
        if member is None:
            return
        match event:
            case KvExhausted():
                self._on_exhausted(member, event)
            case KvDropped():
                self._on_dropped(member, event)
            case _:
                assert_never(event)

    def _note_of_pool(
        self, event: InstanceJoined | InstanceLost | ModelFailed | ModelRecovered | WeightsFetched
    ) -> None:
        self._look = True
        match event:
            case InstanceJoined():
                self._on_joined(event)
            case InstanceLost():
                self._on_lost(event)
            case ModelFailed():
                self._on_model_failed(event)
            case ModelRecovered():
                self._failures.pop(event.model, None)
            case WeightsFetched():
                self._host.note_fetched(self._models[event.model], self._now_s)
            case _:
                assert_never(event)

    # -- requests

    def _on_arrived(self, request: Request) -> None:
        if request.request_id in self._members:
            raise ValueError(f"request {request.request_id} arrived twice")
        model = self._models.get(request.model)
        if model is None:
            self._out.append(unknown_model(request))
            return
        order = (request.arrival_s, next(self._arrivals))
        member = Member(request, model.facts, order, request.prompt_tokens)
        refusal = self._refusal(member)
        if refusal is not None:
            self._out.append(refusal)
            return
        self._members[request.request_id] = member
        self._await_prefill(member)

    def _await_prefill(self, member: Member) -> None:
        if not self._unprefilled:
            self._drain.begin(self._now_s)
        prompt_s = self._costs.prefill_s(member.model, (member.context_tokens,))
        self._unprefilled[member.request_id] = prompt_s
        self._unprefilled_s += prompt_s
        self._free(member)

    def _await_no_prefill(self, member: Member) -> None:
        self._unprefilled_s -= self._unprefilled.pop(member.request_id, 0.0)
        if not self._unprefilled:
            self._unprefilled_s = 0.0  # no rounding is kept for ever

    def _refusal(self, member: Member) -> RejectRequest | None:
        if member.model in self._failures:
            return RejectRequest(member.request_id, RejectReason.MODEL_FAILED, self._failures[member.model])
        return self._misfit(member) or self._overload(member)

    def _overload(self, member: Member) -> RejectRequest | None:
        queued = len(self._unprefilled)
        if queued < self._limits.max_queued_requests:
            return None
        prefilling = sum(instance.spec.role.prefills for instance in self._instances.values())
        prompts_s = self._unprefilled_s / max(1, prefilling)  # as if nothing else ran; known before anything is seen
        wait_s = max(self._limits.min_retry_after_s, prompts_s, self._drain.wait_s(queued, self._now_s))
        return overload(member, queued, self._limits.max_queued_requests, wait_s)

    def _misfit(self, member: Member) -> RejectRequest | None:
        specs = [instance.spec for instance in self._instances.values()]
        return misfit(member, self._slabs.capacity_blocks(member.facts), specs)

    def _on_prefilled(self, member: Member, event: RequestPrefilled) -> None:
        if member.turn_id != event.turn_id:
            member.context_tokens = max(member.context_tokens, event.context_tokens)  # its KV was dropped meanwhile
            return
        turn = self._turn_of(member)
        turn.prompt_s -= self._costs.prefill_s(member.model, (member.context_tokens,))
        member.phase = Phase.DECODING
        self._await_no_prefill(member)
        self._drain.leave(self._now_s)
        self._grow(member, event.context_tokens)
        if not turn.keeps_prefilled:
            self._leave(member)
            self._forget_device(member)
            self._free(member)

    def _grow(self, member: Member, context_tokens: int) -> None:
        """Note a reported context."""
        member.context_tokens = max(member.context_tokens, context_tokens)
        if member.request_id in self._slabs:
            self._slabs.reserve(member)

    # -- being free, taking part

    def _free(self, member: Member) -> None:
        """The member is in no turn and may be put into one."""
        model = self._models[member.model]
        self._queue(model, member)
        self._agenda.update(model, self._now_s)
        self._freed[model.name] = model

    def _queue(self, model: ModelState, member: Member) -> None:
        self._urgency.note(member, model.step_s)
        model.queue_of(member).add(member)
        self._gate.wait(member)

    def _unfree(self, member: Member) -> None:
        """Take a member out of its queue, if it is in one; its due time has not changed since."""
        model = self._models[member.model]
        model.waiting.discard(member)
        model.decoding.discard(member)
        self._gate.leave(member)
        self._agenda.update(model, self._now_s)

    def _turn_of(self, member: Member) -> Turn:
        turns = self._models[member.model].turns.values()
        return next(turn for turn in turns if turn.turn_id == member.turn_id)

    def _leave(self, member: Member) -> None:
        """The member is in its turn no more."""
        if member.turn_id is not None:
            turn = self._turn_of(member)
            del turn.members[member.request_id]
            member.turn_id = None
            if member.phase is Phase.WAITING:
                turn.prompt_s -= self._costs.prefill_s(member.model, (member.context_tokens,))

    def _forget_device(self, member: Member) -> None:
        """The executor drops the device copy by itself."""
        if member.device is not None:
            self._room.forget_kv(self._instances[member.device], member)

    def _withdraw(self, member: Member) -> None:
        """Take a member out of wherever it is."""
        self._leave(member)
        self._unfree(member)
        self._forget_device(member)

    def _forget(self, member: Member) -> None:
        """The request is over."""
        self._look = self._gate.release(member) or self._look
        self._withdraw(member)
        self._await_no_prefill(member)
        del self._members[member.request_id]

    def _reject(self, member: Member, reason: RejectReason, detail: str) -> None:
        self._forget(member)
        self._out.append(RejectRequest(member.request_id, reason, detail))

    # -- the slab cache

    def _on_exhausted(self, member: Member, event: KvExhausted) -> None:
        """Drop the KV of the holder that arrived last, so that the others go on; it is recomputed later.

        One at a time: whoever still waits when a drop is done is reported again.
        """
        victim = self._slabs.last_arrived()
        if member.turn_id != event.turn_id or victim is None or self._slabs.dropping:
            return
        alone = len(self._slabs) == 1
        if not (alone and member.starved_alone):
            member.starved_alone = alone  # then it may have met KV that is only about to be freed: one more try
            self._drop(self._members[victim.request_id])
            self._slabs.exhausted()
        else:
            detail = f"the KV slab cache is full with {member.context_tokens} tokens of this request alone"
            self._reject(member, RejectReason.TOO_LARGE, detail)

    def _drop(self, member: Member) -> None:
        """Give up the member's KV; once that is done it waits to be prefilled again, with its whole context."""
        self._out.append(DropKv(member.request_id))
        self._slabs.drop(member)
        self._withdraw(member)
        member.phase = Phase.DROPPING

    def _on_dropped(self, member: Member, event: KvDropped) -> None:
        if member.phase is Phase.DROPPING:
            self._gate.release(member)
            member.context_tokens = event.context_tokens
            member.phase = Phase.WAITING
            self._await_prefill(member)

    # -- turns

    def _on_turn_ended(self, event: TurnEnded) -> None:
        instance = self._instances.get(event.instance_id)
        if instance is None or instance.turn is None or instance.turn.turn_id != event.turn_id:
            return  # of an instance that was lost
        turn = self._end_turn(instance)
        contexts = dict(event.contexts)
        members = list(turn.members.values())
        prompts = [member for member in members if member.phase is Phase.WAITING]
        for member in members:
            member.turn_id = None
            self._grow(member, contexts.get(member.request_id, 0))
            instance.memory.count_kv(member, member.kv_bytes)
        self._room.evict_kv(instance, prompts, self._out)
        model = self._models[turn.model]
        for member in members:
            self._queue(model, member)
        self._agenda.update(model, self._now_s)
        self._freed[model.name] = model
        self._look = True
        if event.reason is TurnEndReason.FAILED:
            self._on_turn_failed(instance, turn, members)

    def _end_turn(self, instance: Instance) -> Turn:
        turn = instance.turn
        assert turn is not None
        instance.turn = None
        model = self._models[turn.model]
        del model.turns[instance.name]
        model.served_s = self._now_s
        if turn.model in instance.memory:
            resident = instance.memory.residents[turn.model]
            resident.used_s = self._now_s
        return turn

    def _on_turn_failed(self, instance: Instance, turn: Turn, members: list[Member]) -> None:
        if turn.model in instance.memory:
            self._room.evict(instance, turn.model, self._out)
        for member in members:
            member.failed_turns += 1
            if member.failed_turns >= self._limits.max_failed_turns:
                detail = f"{member.model} failed in {member.failed_turns} turns of this request"
                self._reject(member, RejectReason.MODEL_FAILED, detail)

    # -- the pool

    def _on_joined(self, event: InstanceJoined) -> None:
        spec = event.instance
        if spec.instance_id in self._instances:
            raise ValueError(f"instance {spec.instance_id} joined twice")
        spec = replace(spec, max_resident_models=min(spec.max_resident_models, self._max_residents))
        self._instances[spec.instance_id] = Instance(spec, next(self._joins))
        for member in [member for member in self._members.values() if member.turn_id is None]:
            refusal = self._misfit(member)
            if refusal is not None:
                self._reject(member, refusal.reason, refusal.detail)

    def _on_lost(self, event: InstanceLost) -> None:
        instance = self._instances.get(event.instance_id)
        if instance is None:
            return
        in_turn = list(instance.turn.members.values()) if instance.turn is not None else []
        for resident in list(instance.memory.residents.values()):
            for member in list(resident.members.values()):
                self._room.forget_kv(instance, member)
            self._models[resident.facts.name].homes.pop(instance.name, None)
        if instance.turn is not None:
            self._end_turn(instance)
        del self._instances[event.instance_id]
        survivors = dict(event.survivors)
        for member in sorted(in_turn, key=attrgetter("order")):
            member.turn_id = None
            if member.request_id in survivors:
                self._grow(member, survivors[member.request_id])
                self._free(member)
            else:
                self._drop(member)

    def _on_model_failed(self, event: ModelFailed) -> None:
        self._failures[event.model] = event.reason
        self._host.note_failed(self._models[event.model])
        for member in [member for member in self._members.values() if member.model == event.model]:
            self._reject(member, RejectReason.MODEL_FAILED, event.reason)
        for instance in self._instances.values():
            running = instance.turn is not None and instance.turn.model == event.model
            if event.model in instance.memory and not running:
                self._room.evict(instance, event.model, self._out)
