"""What the control plane knows of a model."""

from __future__ import annotations

from dataclasses import dataclass

from aegaeon.core.kv_shape import KvShape
from aegaeon.core.slo import Slo


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One served model: its name, the bytes of its weights, its KV geometry and its context limit."""

    name: str
    weight_bytes: int
    kv_shape: KvShape
    max_context_tokens: int
    slo: Slo = Slo()

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("a model needs a name")
        if self.weight_bytes < 1 or self.max_context_tokens < 1:
            raise ValueError(f"model {self.name}: weight bytes and context limit must be positive")
