"""Brings models and KV onto a device and makes room for them: who is evicted for whom.

A model without work goes first, the one that was used longest ago; then the one whose next turn is furthest away, for
what is needed last is missed least (Belady's rule, with due times for an oracle).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from aegaeon.core.command import Command, EvictKv, EvictWeights
from aegaeon.core.cost import CostModel
from aegaeon.scheduler.policies.slack.device_memory import Resident
from aegaeon.scheduler.policies.slack.slack_instance import SlackInstance
from aegaeon.scheduler.policies.slack.slack_job import SlackJob
from aegaeon.scheduler.policies.slack.slack_model import SlackModel


class Room:
    """Changes the books of devices and appends the commands that make it so. ``models``: by name."""

    def __init__(self, models: Mapping[str, SlackModel], costs: CostModel) -> None:
        self._models = models
        self._costs = costs

    def admit(
        self, instance: SlackInstance, model: SlackModel, only_after_s: float, now_s: float, out: list[Command]
    ) -> bool:
        """Have room for a model's weights and begin to count them; False, and nothing changes, where there is none."""
        facts = model.facts
        if not self.make(instance, (facts.name,), only_after_s, now_s, out, facts.weight_bytes, models=1):
            return False
        instance.link_free_s = max(now_s, instance.link_free_s) + self._costs.switch_s(facts.name)
        instance.memory.bring_in(facts, instance.link_free_s, now_s)
        model.homes[instance.name] = None
        return True

    def make(
        self,
        instance: SlackInstance,
        keep: tuple[str, ...],
        only_after_s: float,
        now_s: float,
        out: list[Command],
        weight_bytes: int = 0,
        kv_bytes: int = 0,
        models: int = 0,
    ) -> bool:
        """Evict until this much fits; False, and nothing changes, where that is impossible.

        Never the models to ``keep``; one with work only if its next turn must begin after ``only_after_s`` and it is
        not on its way, unless that is minus infinity.
        """
        memory = instance.memory
        if memory.fits(weight_bytes, kv_bytes, models):
            return True
        victims: list[str] = []
        freed_weights = freed_kv = 0
        for resident in self._evictable(instance, keep, only_after_s, now_s):
            victims.append(resident.facts.name)
            freed_weights += resident.facts.weight_bytes
            freed_kv += resident.kv_bytes
            if memory.fits(weight_bytes - freed_weights, kv_bytes - freed_kv, models - len(victims)):
                for victim in victims:
                    self.evict(instance, victim, out)
                return True
        return False

    def most_weight_bytes(self, instance: SlackInstance, only_after_s: float, now_s: float) -> int:
        """The largest model that ``admit`` finds room for; negative where there is none for any."""
        return instance.memory.spare_weight_bytes(self._evictable(instance, (), only_after_s, now_s))

    def evict(self, instance: SlackInstance, model: str, out: list[Command]) -> None:
        """Drop a model and the KV of its members from a device."""
        self.evict_kv(instance, list(instance.memory.residents[model].members.values()), out)
        instance.memory.drop_weights(model)
        self._models[model].homes.pop(instance.name, None)
        out.append(EvictWeights(instance.name, model))

    def evict_kv(self, instance: SlackInstance, members: list[SlackJob], out: list[Command]) -> None:
        """Drop the device copies of some members' KV."""
        for member in members:
            self.forget_kv(instance, member)
        if members:
            out.append(EvictKv(instance.name, tuple(member.request_id for member in members)))

    def forget_kv(self, instance: SlackInstance, member: SlackJob) -> None:
        """The executor has dropped a member's device copy, or is about to."""
        instance.memory.drop_kv(member)
        member.device = None

    def _evictable(
        self, instance: SlackInstance, keep: tuple[str, ...], only_after_s: float, now_s: float
    ) -> list[Resident]:
        running = instance.turn.model if instance.turn else None
        idle: list[tuple[float, Resident]] = []
        working: list[tuple[float, Resident]] = []
        for name, resident in instance.memory.residents.items():
            if name in keep or name == running:
                continue
            key_s = self._models[name].key_s
            if key_s is None:
                idle.append((resident.used_s, resident))
            elif key_s > only_after_s and (resident.ready_s <= now_s or only_after_s == -math.inf):
                working.append((-key_s, resident))
        return [resident for group in (idle, working) for _, resident in sorted(group, key=lambda pair: pair[0])]
