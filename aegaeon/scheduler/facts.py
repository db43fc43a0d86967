"""What a policy asks of a model again and again, computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aegaeon.core.kv_shape import KvShape
from aegaeon.core.model import ModelSpec


@dataclass(frozen=True, slots=True)
class PolicyFacts:
    """A model in small numbers. ``shape_id`` tells KV shapes apart (models of one shape share slabs)."""

    name: str
    weight_bytes: int
    max_context_tokens: int
    block_tokens: int
    block_bytes: int
    shape_id: int

    def blocks_for(self, tokens: int) -> int:
        """KV blocks that ``tokens`` tokens need."""
        return -(-tokens // self.block_tokens)


def model_facts(models: Sequence[ModelSpec]) -> dict[str, PolicyFacts]:
    """Facts by model name. Raises ``ValueError`` when two models have one name."""
    shape_ids: dict[KvShape, int] = {}
    same_object: dict[int, int] = {}  # by identity first: hashing a shape of many layers takes long
    facts: dict[str, PolicyFacts] = {}
    for model in models:
        if model.name in facts:
            raise ValueError(f"two models are called {model.name!r}")
        shape = model.kv_shape
        shape_id = same_object.get(id(shape))
        if shape_id is None:
            shape_id = same_object[id(shape)] = shape_ids.setdefault(shape, len(shape_ids))
        facts[model.name] = PolicyFacts(
            model.name, model.weight_bytes, model.max_context_tokens, shape.block_tokens, shape.block_bytes, shape_id
        )
    return facts
