"""Which model each instance runs next, with whom and for how long, and which one it brings in meanwhile.

An idle instance begins the most urgent model that is on its device: the one whose turn must begin first so that nobody
becomes late. All of its members ride along. Meanwhile the copy engine brings in the most urgent model of the node that
no device serves, and the KV of its members.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import count, islice

from aegaeon.core.command import Command, EndTurn, ExtendTurn, LoadWeights, StartTurn
from aegaeon.core.cost import CostModel
from aegaeon.core.instance import Role
from aegaeon.scheduler.limits import PoolLimits
from aegaeon.scheduler.policies.slack.agenda import Agenda
from aegaeon.scheduler.policies.slack.host_memory import HostModels
from aegaeon.scheduler.policies.slack.prompt_gate import PromptGate
from aegaeon.scheduler.policies.slack.room import Room
from aegaeon.scheduler.policies.slack.slack_instance import SlackInstance
from aegaeon.scheduler.policies.slack.slack_job import SlackJob
from aegaeon.scheduler.policies.slack.slack_model import SlackModel
from aegaeon.scheduler.policies.slack.slack_turn import SlackTurn
from aegaeon.scheduler.policies.slack.tuning import Tuning
from aegaeon.scheduler.policies.slack.urgency import Urgency
from aegaeon.scheduler.prompt_cost import prompt_s

_NEVER = float("inf")
_NO_LOAD_S = 0.05  # before it is looked again what could be brought in
_LOOK_AT = 64  # models of the agenda, the most urgent ones, for what to bring in
_TRIES = 4  # loads that do not fit, before the copy engine is left idle


class Planner:
    """``models`` and ``instances`` are the scheduler's tables, ``agenda`` its models with work."""

    def __init__(
        self,
        *,
        models: Mapping[str, SlackModel],
        instances: Mapping[str, SlackInstance],
        agenda: Agenda,
        room: Room,
        host: HostModels,
        gate: PromptGate,
        costs: CostModel,
        urgency: Urgency,
        limits: PoolLimits,
        tuning: Tuning,
    ) -> None:
        self._models = models
        self._instances = instances
        self._agenda = agenda
        self._room = room
        self._host = host
        self._gate = gate
        self._costs = costs
        self._urgency = urgency
        self._limits = limits
        self._tuning = tuning
        self._turn_ids = count(1)
        self._unserved: dict[Role, list[SlackModel]] = {}  # in the present decision, as far as they were asked for
        self._promised: set[str] | None = None
        self._least_bytes = min((model.facts.weight_bytes for model in models.values()), default=0)

    # -- joining a turn

    def extend(self, model: SlackModel, now_s: float, out: list[Command]) -> None:
        """Let members that wait join the turns of their model, as far as there is room."""
        self._host.want(model)
        for turn in list(model.turns.values()):
            if model.has_work() and not turn.ending:
                instance = self._instances[turn.instance_id]
                joining = self._take(instance, model, turn, now_s, out)
                if joining:
                    prefill, decode = _by_phase(joining)
                    out.append(ExtendTurn(instance.name, turn.turn_id, prefill, decode))

    # -- starting turns

    def advance(self, now_s: float, out: list[Command]) -> None:
        """Give every idle instance a turn, every idle copy engine a load and an idle disk a read, as far as there is
        work."""
        self._agenda.refresh(now_s)
        self._unserved.clear()
        self._promised = None
        instances = list(self._instances.values())
        ready_by_s = now_s + self._tuning.turn_s
        for instance in [one for one in instances if one.turn is not None and one.turn.ready_s >= ready_by_s]:
            self._stop_waiting(instance, now_s, out)
        idle = [instance for instance in instances if instance.turn is None]
        for instance in idle:
            self._start_resident(instance, now_s, out)
        for instance in idle:
            if instance.turn is None:
                self._start_any(instance, now_s, out)
        for instance in [one for one in instances if now_s >= one.no_load_until_s and now_s >= one.link_free_s]:
            self._load_ahead(instance, now_s, out)
        self._host.advance(now_s, out)

    def _stop_waiting(self, instance: SlackInstance, now_s: float, out: list[Command]) -> None:
        """A turn whose weights are still on their way ends when another model could run meanwhile."""
        turn = instance.turn
        assert turn is not None
        if turn.ending:
            return
        ready = self._ready(instance, now_s, besides=turn.model)
        if any(self._may_run(instance, model, now_s) for _, model in ready):
            turn.ending = True
            out.append(EndTurn(instance.name, turn.turn_id))

    def _start_resident(self, instance: SlackInstance, now_s: float, out: list[Command]) -> None:
        """Begin the most urgent model whose weights are there, unless another must take its place."""
        ready = self._ready(instance, now_s)
        if ready and self._replace(instance, *ready[0], now_s, out):
            return
        for _, model in ready:
            if self._begin(instance, model, _NEVER, now_s, out):
                return

    def _replace(
        self, instance: SlackInstance, key_s: float, model: SlackModel, now_s: float, out: list[Command]
    ) -> bool:
        """Begin a model that cannot be brought in beside the one that is there, once it is so much more urgent that
        both switches are worth waiting for; else a device with room for one model would never let it go.
        """
        other = next(self._wanted(instance), None)
        if other is None or self._fit_together(instance, model, other):
            return False
        assert other.key_s is not None
        switches_s = self._costs.switch_s(model.name) + self._costs.switch_s(other.name)
        after_s = other.key_s + self._tuning.keep_margin_s + switches_s
        return after_s < key_s and self._begin(instance, other, after_s, now_s, out)

    def _fit_together(self, instance: SlackInstance, model: SlackModel, other: SlackModel) -> bool:
        spec, used = instance.spec, instance.memory.residents[model.name].kv_bytes
        weights = model.facts.weight_bytes + other.facts.weight_bytes
        return spec.max_resident_models > 1 and weights <= spec.weight_bytes and weights + used <= spec.total_bytes

    def _ready(
        self, instance: SlackInstance, now_s: float, besides: str | None = None
    ) -> list[tuple[float, SlackModel]]:
        """Models with work whose weights are there, the most urgent first."""
        ready = []
        for name, resident in instance.memory.residents.items():
            model = self._models[name]
            if name != besides and resident.ready_s <= now_s and model.has_work(instance.spec.role):
                ready.append((self._urgency.key_s(model, now_s, instance.spec.role), model))
        return sorted(ready, key=lambda pair: (pair[0], pair[1].order))

    def _start_any(self, instance: SlackInstance, now_s: float, out: list[Command]) -> None:
        """Nothing to do here: wait for the most urgent model that is, or can be, on its way.

        If need be it takes the place of one whose work cannot go on now.
        """
        if not self._may_start(instance.spec.role):
            return
        for only_after_s in (_NEVER, -_NEVER):
            room_bytes = self._room.most_weight_bytes(instance, only_after_s, now_s)
            for model in self._startable(instance, room_bytes, now_s):
                if self._begin(instance, model, only_after_s, now_s, out):
                    return

    def _may_start(self, role: Role) -> bool:
        if not self._agenda.has_work(role):
            return False
        return role.decodes or not self._gate.closed or bool(self._gate.begun)

    def _startable(self, instance: SlackInstance, room_bytes: int, now_s: float) -> Iterator[SlackModel]:
        """Models with work that are on the device or would fit, the most urgent first.

        Where only prompts count those of whom one may begin: all of them, until the gate closes.
        """
        role, memory = instance.spec.role, instance.memory
        for model in self._agenda.by_urgency(role) if room_bytes >= self._least_bytes else self._on(instance):
            if not role.decodes and self._gate.closed:
                break
            fits = model.facts.weight_bytes <= room_bytes or model.name in memory
            if fits and model.name not in self._promises(now_s):
                yield model
        else:
            return
        begun = {member.model for member in self._gate.begun}
        yield from self._agenda.among((self._models[name] for name in begun), role)

    def _on(self, instance: SlackInstance) -> list[SlackModel]:
        """Models with work that are on the device."""
        models = (self._models[name] for name in instance.memory.residents)
        return self._agenda.among(models, instance.spec.role)

    def _promises(self, now_s: float) -> set[str]:
        """Models for which a turn that waited was ended, where they are ready.

        Started elsewhere they would wait for their weights, and that turn would be ended in its turn, for ever.
        """
        if self._promised is None:
            ending = [(one, turn) for one in self._instances.values() if (turn := one.turn) and turn.ending]
            self._promised = {
                model.name for one, turn in ending for _, model in self._ready(one, now_s, besides=turn.model)
            }
        return self._promised

    def _begin(
        self, instance: SlackInstance, model: SlackModel, only_after_s: float, now_s: float, out: list[Command]
    ) -> bool:
        """Start a turn; ``only_after_s``: see ``Room.make``. False, and nothing changes, where that is impossible."""
        if not self._host.holds(model) or not self._may_run(instance, model, now_s):
            return False
        said: list[Command] = []
        if model.name not in instance.memory and not self._room.admit(instance, model, only_after_s, now_s, said):
            return False
        resident = instance.memory.residents[model.name]
        seconds = self._tuning.turn_s
        keep = instance.spec.role.prefills and instance.spec.role.decodes
        tokens = 2 + math.ceil(1.5 * seconds / model.step_s)
        turn = SlackTurn(next(self._turn_ids), instance.name, model.name, keep, tokens, resident.ready_s)
        instance.turn = turn
        members = self._take(instance, model, turn, now_s, said)
        assert members, "somebody may run here, and alone would fit"
        out += said
        resident.used_s = model.served_s = now_s
        model.turns[instance.name] = turn
        prefill, decode = _by_phase(members)
        quota_s = seconds + turn.prompt_s
        out.append(StartTurn(instance.name, turn.turn_id, model.name, prefill, decode, quota_s, keep))
        return True

    def _may_run(self, instance: SlackInstance, model: SlackModel, now_s: float) -> bool:
        """Whether a member could take part in a turn here now."""
        role = instance.spec.role
        if role.decodes and any(instance.can_hold(member) for member in model.decoding):
            return True
        if not role.prefills:
            return False
        prompts = self._gate.candidates(model, now_s)
        return any(instance.can_hold(member) and self._gate.admits(member) for member in prompts)

    def _may_host(self, instance: SlackInstance, model: SlackModel) -> bool:
        role = instance.spec.role
        queues = [queue for queue, may in ((model.waiting, role.prefills), (model.decoding, role.decodes)) if may]
        return any(instance.can_hold(member) for queue in queues for member in queue)

    # -- who takes part

    def _take(
        self, instance: SlackInstance, model: SlackModel, turn: SlackTurn, now_s: float, out: list[Command]
    ) -> list[SlackJob]:
        """Put members that wait into a turn: those who decode first, then prompts."""
        role = instance.spec.role
        taken: list[SlackJob] = []
        prompt_limit_s = self._prompt_limit_s(model, turn, now_s)
        if role.decodes:
            taken += self._take_decodes(instance, model, turn, now_s, out)
        if role.prefills:
            taken += self._take_prompts(instance, model, turn, prompt_limit_s, now_s, out)
        if taken:
            self._agenda.update(model, now_s)
        return taken

    def _take_decodes(
        self, instance: SlackInstance, model: SlackModel, turn: SlackTurn, now_s: float, out: list[Command]
    ) -> list[SlackJob]:
        taken: list[SlackJob] = []
        context = sum(member.context_tokens * member.width for member in turn.members.values())
        rows = turn.rows
        for member in model.decoding.urgent_first(now_s):
            if not instance.can_hold(member):
                continue
            context += member.context_tokens * member.width
            rows += member.width
            if not self._step_fits(instance, model, member, context, rows):
                break
            if not self._fit_kv(instance, member, turn, now_s, out):
                break
            self._enter(turn, member)
            taken.append(member)
        for member in taken:
            model.decoding.discard(member)
        return taken

    def _take_prompts(
        self,
        instance: SlackInstance,
        model: SlackModel,
        turn: SlackTurn,
        limit_s: float,
        now_s: float,
        out: list[Command],
    ) -> list[SlackJob]:
        taken: list[SlackJob] = []
        keeps = turn.keeps_prefilled
        rows = turn.rows if keeps else len(turn.members)
        most = instance.spec.max_batch_requests if keeps else self._limits.max_group_requests
        for member in self._gate.candidates(model, now_s):
            if not instance.can_hold(member):
                continue
            prefill_s = prompt_s(self._costs, member)
            if rows + (member.width if keeps else 1) > most or (turn.members and turn.prompt_s + prefill_s > limit_s):
                break
            if not self._gate.admits(member):
                continue
            if not self._fit_kv(instance, member, turn, now_s, out):
                break
            self._gate.enter(member)
            self._enter(turn, member)
            rows += member.width if keeps else 1
            turn.prompt_s += prefill_s
            taken.append(member)
        for member in taken:
            model.waiting.discard(member)
        return taken

    def _prompt_limit_s(self, model: SlackModel, turn: SlackTurn, now_s: float) -> float:
        """Prompts may take as long as the member that decodes and is due first can wait."""
        most_s = self._tuning.max_prompt_s
        running = any(member.decodes for member in turn.members.values())
        first = model.decoding.due_from(now_s, 1)
        if running or not first:
            return most_s
        return min(most_s, first[0].due_s - model.step_s - now_s)

    def _step_fits(
        self, instance: SlackInstance, model: SlackModel, member: SlackJob, context_tokens: int, rows: int
    ) -> bool:
        """Whether steps of so many rows stay fast enough with one more member; a lone member always may."""
        if rows > instance.spec.max_batch_requests:
            return False
        step_s = self._costs.decode_step_s(model.name, context_tokens, rows)
        return rows == member.width or step_s <= self._tuning.full_step_share * member.request.slo.tpot_s

    def _fit_kv(
        self, instance: SlackInstance, member: SlackJob, turn: SlackTurn, now_s: float, out: list[Command]
    ) -> bool:
        """Have room for the member's KV and what it grows by in the turn; its copy elsewhere goes."""
        size_bytes = member.kv_bytes_after(turn.tokens)
        here = member.device == instance.name
        extra_bytes = size_bytes - (member.kv_count_bytes if here else 0)
        made = self._room.make(instance, (turn.model,), now_s, now_s, out, kv_bytes=extra_bytes)
        if not made and not self._alone(instance, turn, member, out):
            return False
        if member.device is not None and not here:
            self._room.evict_kv(self._instances[member.device], [member], out)
        if not here and member.decodes:
            self._charge_kv(instance, member, now_s)
        member.device = instance.name
        instance.memory.count_kv(member, size_bytes)
        return True

    def _alone(self, instance: SlackInstance, turn: SlackTurn, member: SlackJob, out: list[Command]) -> bool:
        """A turn's only member may take all there is: whoever else has KV of this model here must go."""
        if turn.members:
            return False
        resident = instance.memory.residents[turn.model]
        others = [other for other in resident.members.values() if other is not member]
        self._room.evict_kv(instance, others, out)
        for other in list(instance.memory.residents):
            if other != turn.model:
                self._room.evict(instance, other, out)
        return True

    def _charge_kv(self, instance: SlackInstance, member: SlackJob, now_s: float) -> None:
        """KV goes first: weights on their way come that much later."""
        move_s = self._costs.kv_move_s(member.model, member.context_tokens)
        instance.link_free_s = max(now_s, instance.link_free_s) + move_s
        for resident in instance.memory.residents.values():
            if resident.ready_s > now_s:
                resident.ready_s += move_s

    def _enter(self, turn: SlackTurn, member: SlackJob) -> None:
        member.turn_id = turn.turn_id
        turn.members[member.request_id] = member

    # -- loading ahead

    def _load_ahead(self, instance: SlackInstance, now_s: float, out: list[Command]) -> None:
        """Queue a load when the copy engine is free: the later it is chosen, the more is known."""
        if not self._agenda.has_work(instance.spec.role):
            return
        while now_s >= max(instance.no_load_until_s, instance.link_free_s):
            if not self._load_next(instance, now_s, out):
                instance.no_load_until_s = now_s + _NO_LOAD_S

    def _load_next(self, instance: SlackInstance, now_s: float, out: list[Command]) -> bool:
        for model in islice(self._wanted(instance), _TRIES):
            assert model.key_s is not None
            if self._room.admit(instance, model, model.key_s + self._tuning.keep_margin_s, now_s, out):
                kv = self._load_kv(instance, model, now_s, out)
                out.append(LoadWeights(instance.name, model.name, kv))
                return True
        return False

    def _load_kv(self, instance: SlackInstance, model: SlackModel, now_s: float, out: list[Command]) -> tuple[str, ...]:
        """The KV of those who wait comes with their model, as far as there is room beside what is there."""
        if not instance.spec.role.decodes:
            return ()
        coming: list[str] = []
        for member in model.decoding.urgent_first(now_s):
            if not instance.can_hold(member):
                continue
            if not instance.memory.fits(kv_bytes=member.kv_bytes):
                break
            if member.device is not None:
                self._room.evict_kv(self._instances[member.device], [member], out)
            self._charge_kv(instance, member, now_s)
            member.device = instance.name
            instance.memory.count_kv(member, member.kv_bytes)
            coming.append(member.request_id)
        return tuple(coming)

    def _wanted(self, instance: SlackInstance) -> Iterator[SlackModel]:
        """Models with work that no device will take as it is and that this one may, the most urgent first."""
        role = instance.spec.role
        if role not in self._unserved:
            first = islice(self._agenda.by_urgency(role), _LOOK_AT)
            self._unserved[role] = [model for model in first if not self._served(model)]
        for model in self._unserved[role]:
            if model.name in instance.memory or not self._host.holds(model):
                continue
            if not self._served(model) and self._may_host(instance, model):
                yield model

    def _served(self, model: SlackModel) -> bool:
        """Whether a device that has the model, and does not run it, can take its work."""
        if len(model.homes) <= len(model.turns):  # it runs where its weights are
            return False
        return any(home not in model.turns and model.has_work(self._instances[home].spec.role) for home in model.homes)


def _by_phase(members: Iterable[SlackJob]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    members = list(members)
    waiting = tuple(member.request_id for member in members if not member.decodes)
    return waiting, tuple(member.request_id for member in members if member.decodes)
