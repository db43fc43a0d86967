"""What the control plane knows of an instance: one device group that runs one model at a time."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """What an instance may run."""

    PREFILL = "prefill"
    DECODE = "decode"
    MIXED = "mixed"

    @property
    def prefills(self) -> bool:
        """Whether prompts may be processed here."""
        return self is not Role.DECODE

    @property
    def decodes(self) -> bool:
        """Whether requests may go on here after their first token."""
        return self is not Role.PREFILL


BATCH_REQUESTS = 256
"""The most that an instance decodes together, unless somebody says otherwise."""


@dataclass(frozen=True, slots=True)
class InstanceSpec:
    """Capacities of an instance, as numbers.

    ``max_resident_models`` bounds the residency set (the paper: the running model and one prefetched, so 2);
    ``weight_bytes`` bounds the bytes of their weights, ``kv_bytes`` the KV of one batch. Where ``memory_bytes`` is
    given weights and KV compete for it, and it bounds the two of them together; else each has memory of its own.
    """

    instance_id: str
    role: Role
    kv_bytes: int
    weight_bytes: int
    max_resident_models: int = 2
    max_batch_requests: int = BATCH_REQUESTS
    memory_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.max_resident_models < 1 or self.max_batch_requests < 1:
            raise ValueError(f"instance {self.instance_id}: needs room for one model and one request")
        if self.kv_bytes < 1 or self.weight_bytes < 1:
            raise ValueError(f"instance {self.instance_id}: KV and weight capacities must be positive")
        if self.memory_bytes is not None and max(self.kv_bytes, self.weight_bytes) > self.memory_bytes:
            raise ValueError(f"instance {self.instance_id}: neither KV nor weights may exceed its memory")

    @property
    def total_bytes(self) -> int:
        """What weights and KV may take together."""
        return self.kv_bytes + self.weight_bytes if self.memory_bytes is None else self.memory_bytes
