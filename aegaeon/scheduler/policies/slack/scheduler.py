"""The policy ``slack``: the least slack first, as lazily as deadlines allow, on many resident models.

Every event first corrects what is known of requests, models and instances. Then members that became free join a
running turn of their model where they can, idle instances begin the most urgent model on their device, and idle copy
engines bring in the most urgent model that no device serves (``planner.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from operator import attrgetter

from aegaeon.core.cost import CostModel
from aegaeon.core.event import RequestPrefilled, TurnEnded
from aegaeon.core.instance import InstanceSpec
from aegaeon.core.model import ModelSpec
from aegaeon.core.request import Request
from aegaeon.scheduler.facts import PolicyFacts
from aegaeon.scheduler.job import JobPhase
from aegaeon.scheduler.limits import PoolLimits
from aegaeon.scheduler.policies.slack.account import Account
from aegaeon.scheduler.policies.slack.agenda import Agenda
from aegaeon.scheduler.policies.slack.host_memory import HostModels
from aegaeon.scheduler.policies.slack.planner import Planner
from aegaeon.scheduler.policies.slack.prompt_gate import PromptGate
from aegaeon.scheduler.policies.slack.room import Room
from aegaeon.scheduler.policies.slack.slack_instance import SlackInstance
from aegaeon.scheduler.policies.slack.slack_job import SlackJob
from aegaeon.scheduler.policies.slack.slack_model import SlackModel
from aegaeon.scheduler.policies.slack.slack_turn import SlackTurn
from aegaeon.scheduler.policies.slack.tuning import Tuning
from aegaeon.scheduler.policies.slack.urgency import Urgency
from aegaeon.scheduler.prompt_cost import prompt_s
from aegaeon.scheduler.shell import PolicyShell


class SlackScheduler(PolicyShell[SlackJob, SlackInstance]):
    """A ``Scheduler``; see the module docstring and the contract in ``aegaeon.scheduler.scheduler``."""

    def __init__(
        self, models: Sequence[ModelSpec], costs: CostModel, limits: PoolLimits, tuning: Tuning | None = None
    ) -> None:
        super().__init__(models, limits)
        tuning = tuning or Tuning()
        self._max_residents = tuning.max_residents
        self._costs = costs
        of_all = Account()
        self._models = {
            name: SlackModel(facts, order, costs.decode_step_s(name, 0, 1), of_all=of_all)
            for order, (name, facts) in enumerate(self._facts.items())
        }
        steps_s = [model.step_s for model in self._models.values()]
        self._urgency = urgency = Urgency(costs, tuning, sum(steps_s) / max(1, len(steps_s)))
        self._agenda = agenda = Agenda(urgency.key_s)
        self._room = Room(self._models, costs)
        self._host = HostModels(limits.host_weight_bytes, self._room, self._instances, tuning.patience_s)
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
        self._unprefilled: dict[str, float] = {}  # with what their prompts take, in seconds
        self._unprefilled_s = 0.0
        self._freed: dict[str, SlackModel] = {}  # models whose members the present event made free to take a turn
        self._look = False

    def _begin(self) -> None:
        self._look = False
        self._freed.clear()

    def _decide(self) -> None:
        for model in self._freed.values():
            self._planner.extend(model, self._now_s, self._out)
        if self._look or self._freed:
            self._planner.advance(self._now_s, self._out)

    def _pool_changes(self) -> None:
        self._look = True

    # -- requests

    def _new_job(self, request: Request, facts: PolicyFacts, order: tuple[float, int]) -> SlackJob:
        return SlackJob(request, facts, order, request.prompt_tokens)

    def _arrived(self, job: SlackJob) -> None:
        self._place(job)

    def _place(self, job: SlackJob) -> None:
        """It waits for its prompt to be processed, wherever that will be."""
        if not self._unprefilled:
            self._drain.begin(self._now_s)
        self._unprefilled[job.request_id] = needed_s = prompt_s(self._costs, job)
        self._unprefilled_s += needed_s
        self._free(job)

    def _await_no_prefill(self, job: SlackJob) -> None:
        self._unprefilled_s -= self._unprefilled.pop(job.request_id, 0.0)
        if not self._unprefilled:
            self._unprefilled_s = 0.0  # no rounding is kept for ever

    @property
    def _queued(self) -> int:
        return len(self._unprefilled)

    def _queue_s(self) -> float:
        prefilling = sum(instance.spec.role.prefills for instance in self._instances.values())
        return self._unprefilled_s / max(1, prefilling)

    def _prefilled(self, job: SlackJob, event: RequestPrefilled) -> None:
        if job.turn_id != event.turn_id:
            job.context_tokens = max(job.context_tokens, event.context_tokens)  # its KV was dropped meanwhile
            return
        turn = self._turn_of(job)
        turn.prompt_s -= prompt_s(self._costs, job)
        job.phase = JobPhase.DECODING
        self._await_no_prefill(job)
        self._drain.leave(self._now_s)
        self._grow(job, event.context_tokens)
        if not turn.keeps_prefilled:
            self._leave(job)
            self._forget_device(job)
            self._free(job)

    # -- being free, taking part

    def _free(self, job: SlackJob) -> None:
        """The job is in no turn and may be put into one."""
        model = self._models[job.model]
        self._queue(model, job)
        self._agenda.update(model, self._now_s)
        self._freed[model.name] = model

    def _queue(self, model: SlackModel, job: SlackJob) -> None:
        self._urgency.note(job, model.step_s)
        model.queue_of(job).add(job)
        self._gate.wait(job)

    def _unfree(self, job: SlackJob) -> None:
        """Take a job out of its queue, if it is in one; its due time has not changed since."""
        model = self._models[job.model]
        model.waiting.discard(job)
        model.decoding.discard(job)
        self._gate.leave(job)
        self._agenda.update(model, self._now_s)

    def _takes_part(self, job: SlackJob, turn_id: int) -> bool:
        return job.turn_id == turn_id

    def _turn_of(self, job: SlackJob) -> SlackTurn:
        turns = self._models[job.model].turns.values()
        return next(turn for turn in turns if turn.turn_id == job.turn_id)

    def _leave(self, job: SlackJob) -> None:
        """The job is in its turn no more."""
        if job.turn_id is not None:
            turn = self._turn_of(job)
            del turn.members[job.request_id]
            job.turn_id = None
            if job.phase is JobPhase.WAITING:
                turn.prompt_s -= prompt_s(self._costs, job)

    def _forget_device(self, job: SlackJob) -> None:
        """The executor drops the device copy by itself."""
        if job.device is not None:
            self._room.forget_kv(self._instances[job.device], job)

    def _withdraw(self, job: SlackJob) -> None:
        self._leave(job)
        self._unfree(job)
        self._forget_device(job)

    def _forget(self, job: SlackJob) -> None:
        super()._forget(job)
        self._await_no_prefill(job)

    def _release(self, job: SlackJob) -> None:
        self._look = self._gate.release(job) or self._look

    # -- turns

    def _turn_ended(self, instance: SlackInstance, event: TurnEnded) -> list[SlackJob]:
        turn = self._end_turn(instance)
        contexts = dict(event.contexts)
        members = list(turn.members.values())
        prompts = [job for job in members if job.phase is JobPhase.WAITING]
        for job in members:
            job.turn_id = None
            self._grow(job, contexts.get(job.request_id, 0))
            instance.memory.count_kv(job, job.kv_bytes)
        self._room.evict_kv(instance, prompts, self._out)
        model = self._models[turn.model]
        for job in members:
            self._queue(model, job)
        self._agenda.update(model, self._now_s)
        self._freed[model.name] = model
        self._look = True
        return members

    def _end_turn(self, instance: SlackInstance) -> SlackTurn:
        turn = instance.turn
        assert turn is not None, f"{instance.name} has no turn to end"
        instance.turn = None
        model = self._models[turn.model]
        del model.turns[instance.name]
        model.served_s = self._now_s
        if turn.model in instance.memory:
            resident = instance.memory.residents[turn.model]
            resident.used_s = self._now_s
        return turn

    def _evict_weights(self, instance: SlackInstance, model: str) -> None:
        if model in instance.memory:
            self._room.evict(instance, model, self._out)

    # -- the pool

    def _joined(self, spec: InstanceSpec) -> None:
        spec = replace(spec, max_resident_models=min(spec.max_resident_models, self._max_residents))
        self._instances[spec.instance_id] = SlackInstance(spec, next(self._joins))
        self._reject_misfits([job for job in self._jobs.values() if job.turn_id is None])

    def _lost(self, instance: SlackInstance, survivors: Mapping[str, int]) -> None:
        in_turn = list(instance.turn.members.values()) if instance.turn is not None else []
        for resident in list(instance.memory.residents.values()):
            for job in list(resident.members.values()):
                self._room.forget_kv(instance, job)
            self._models[resident.facts.name].homes.pop(instance.name, None)
        if instance.turn is not None:
            self._end_turn(instance)
        del self._instances[instance.name]
        for job in sorted(in_turn, key=attrgetter("order")):
            job.turn_id = None
            if job.request_id in survivors:
                self._grow(job, survivors[job.request_id])
                self._free(job)
            else:
                self._drop(job)

    def _model_failed(self, model: str) -> None:
        self._host.note_failed(self._models[model])

    def _weights_fetched(self, model: str) -> None:
        self._look = True
        self._host.note_fetched(self._models[model], self._now_s)
