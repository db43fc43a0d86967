"""What an instance must know of a model beyond its weights."""

from __future__ import annotations

from dataclasses import dataclass

from aegaeon.core.kv_shape import KvShape


@dataclass(frozen=True, slots=True)
class InstanceModel:
    """A model as turns need it."""

    name: str
    kv_shape: KvShape
    eos_ids: tuple[int, ...]
