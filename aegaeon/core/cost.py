"""What things cost, as schedulers ask."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from aegaeon.core.model import ModelSpec
from aegaeon.core.profile import LatencyProfile


class CostModel(Protocol):
    """Estimates that a scheduling policy decides with; all in seconds."""

    def prefill_s(self, model: str, lengths: Iterable[int]) -> float:
        """Processing prompts of these lengths (tokens) in one batch."""
        ...

    def decode_step_s(self, model: str, context_tokens: int, batch_size: int) -> float:
        """One decode step of a batch whose contexts sum to ``context_tokens``."""
        ...

    def switch_s(self, model: str) -> float:
        """Bringing the model's weights from the host cache to the device."""
        ...

    def kv_move_s(self, model: str, tokens: int) -> float:
        """Moving the KV of ``tokens`` tokens between host and device, one way."""
        ...


@dataclass(frozen=True, slots=True)
class ProfiledCosts:
    """A ``CostModel`` from latency profiles and copy bandwidths."""

    models: Mapping[str, ModelSpec]
    profiles: Mapping[str, LatencyProfile]
    weight_bytes_per_s: float
    kv_bytes_per_s: float
    switch_overhead_s: float = 0.0

    def prefill_s(self, model: str, lengths: Iterable[int]) -> float:
        return self.profiles[model].prefill_s(lengths)

    def decode_step_s(self, model: str, context_tokens: int, batch_size: int) -> float:
        return self.profiles[model].decode_step_s(context_tokens, batch_size)

    def switch_s(self, model: str) -> float:
        return self.switch_overhead_s + self.models[model].weight_bytes / self.weight_bytes_per_s

    def kv_move_s(self, model: str, tokens: int) -> float:
        return self.models[model].kv_shape.bytes_for(tokens) / self.kv_bytes_per_s
