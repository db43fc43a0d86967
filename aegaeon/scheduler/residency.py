"""The set of models whose weights are on one instance's device."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from aegaeon.core.instance import InstanceSpec
from aegaeon.scheduler.facts import PolicyFacts


class Residency:
    """Bounded in models and in bytes; the least recently used model goes first."""

    def __init__(self, spec: InstanceSpec, facts: Mapping[str, PolicyFacts]) -> None:
        self._max_models = spec.max_resident_models
        self._capacity_bytes = spec.weight_bytes
        self._facts = facts
        self._models: dict[str, int] = {}  # weight bytes, least recently used first
        self._used_bytes = 0

    def __contains__(self, model: str) -> bool:
        return model in self._models

    def admit(self, model: str, pinned: Collection[str] = ()) -> tuple[str, ...] | None:
        """Make ``model`` resident and the most recently used; returns the models that must go for it, oldest first.

        None, and nothing changes, if it does not fit beside the ``pinned`` ones.
        """
        need_bytes = self._facts[model].weight_bytes
        victims = () if model in self._models else self._victims(need_bytes, pinned)
        if victims is not None:
            for victim in (*victims, model):
                self.discard(victim)
            self._models[model] = need_bytes
            self._used_bytes += need_bytes
        return victims

    def discard(self, model: str) -> None:
        """Forget ``model`` if it is resident."""
        self._used_bytes -= self._models.pop(model, 0)

    def _victims(self, need_bytes: int, pinned: Collection[str]) -> tuple[str, ...] | None:
        victims: list[str] = []
        used_bytes, candidates = self._used_bytes, iter(self._models.items())
        while len(self._models) - len(victims) >= self._max_models or used_bytes + need_bytes > self._capacity_bytes:
            victim = next((item for item in candidates if item[0] not in pinned), None)
            if victim is None:
                return None
            victims.append(victim[0])
            used_bytes -= victim[1]
        return tuple(victims)
