"""A model as the executor needs it: its spec and its latency on the pool's devices, in plain numbers."""

from __future__ import annotations

from dataclasses import dataclass, field

from aegaeon.core.model import ModelSpec
from aegaeon.core.profile import LatencyProfile


@dataclass(frozen=True, slots=True, eq=False)
class SimModel:
    """``kind`` is the real model behind a synthetic name (figures group switches by it)."""

    spec: ModelSpec
    profile: LatencyProfile
    kind: str
    name: str = field(init=False)
    token_bytes: int = field(init=False)
    block_bytes: int = field(init=False)
    block_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        shape = self.spec.kv_shape
        object.__setattr__(self, "name", self.spec.name)
        object.__setattr__(self, "token_bytes", shape.token_bytes)
        object.__setattr__(self, "block_bytes", shape.block_bytes)
        object.__setattr__(self, "block_tokens", shape.block_tokens)

    def blocks_for(self, tokens: int) -> int:
        """KV blocks that ``tokens`` tokens need."""
        return -(-tokens // self.block_tokens)
