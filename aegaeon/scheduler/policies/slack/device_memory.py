"""What a device holds, in bytes: weights and the KV of requests, which compete for the same memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from aegaeon.core.instance import InstanceSpec
from aegaeon.scheduler.facts import PolicyFacts
from aegaeon.scheduler.policies.slack.slack_job import SlackJob


@dataclass(slots=True, eq=False)
class Resident:
    """A model on the device: ``ready_s`` is when its weights are expected to be there; ``members`` have KV here."""

    facts: PolicyFacts
    ready_s: float
    used_s: float
    kv_bytes: int = 0
    members: dict[str, SlackJob] = field(default_factory=dict)


class DeviceMemory:
    """Weights and KV of one device, each within its limit and both within the device's memory."""

    def __init__(self, spec: InstanceSpec) -> None:
        self._spec = spec
        self.residents: dict[str, Resident] = {}
        self.weight_bytes = 0
        self.kv_bytes = 0

    def __contains__(self, model: str) -> bool:
        return model in self.residents

    def fits(self, weight_bytes: int = 0, kv_bytes: int = 0, models: int = 0) -> bool:
        """Whether this much more would fit."""
        spec = self._spec
        weights, kv = self.weight_bytes + weight_bytes, self.kv_bytes + kv_bytes
        return (
            len(self.residents) + models <= spec.max_resident_models
            and weights <= spec.weight_bytes
            and kv <= spec.kv_bytes
            and weights + kv <= spec.total_bytes
        )

    def spare_weight_bytes(self, without: Sequence[Resident]) -> int:
        """The largest model that would fit if some residents were gone; negative where none would."""
        spec = self._spec
        if len(self.residents) - len(without) >= spec.max_resident_models:
            return -1
        weights = self.weight_bytes - sum(resident.facts.weight_bytes for resident in without)
        kv = self.kv_bytes - sum(resident.kv_bytes for resident in without)
        return min(spec.weight_bytes - weights, spec.total_bytes - weights - kv) if kv <= spec.kv_bytes else -1

    def bring_in(self, facts: PolicyFacts, ready_s: float, now_s: float) -> None:
        """A model's weights take their room from now on."""
        self.residents[facts.name] = Resident(facts, ready_s, now_s)
        self.weight_bytes += facts.weight_bytes

    def drop_weights(self, model: str) -> None:
        """A model's weights are gone; nobody has KV with them."""
        resident = self.residents.pop(model)
        assert not resident.members, "KV goes before its model"
        self.weight_bytes -= resident.facts.weight_bytes

    def count_kv(self, member: SlackJob, kv_bytes: int) -> None:
        """A member's KV is here, or changes its size."""
        resident = self.residents[member.model]
        resident.members[member.request_id] = member
        resident.kv_bytes += kv_bytes - member.kv_count_bytes
        self.kv_bytes += kv_bytes - member.kv_count_bytes
        member.kv_count_bytes = kv_bytes

    def drop_kv(self, member: SlackJob) -> None:
        """A member has no KV here any more."""
        self.count_kv(member, 0)
        del self.residents[member.model].members[member.request_id]
