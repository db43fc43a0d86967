"""What the control plane knows of an instance: one device group that runs one model at a time.

Does not know: processes, devices.
"""

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


@dataclass(frozen=True, slots=True)
class InstanceSpec:
    """Capacities of an instance, as numbers.

    ``max_resident_models`` bounds the residency set (the paper: the running model and one prefetched, so 2);
    ``weight_bytes`` bounds the bytes of their weights, ``kv_bytes`` the KV of one batch.
    """

    instance_id: str
    role: Role
    kv_bytes: int
    weight_bytes: int
    max_resident_models: int = 2
    max_batch_requests: int = 256

    def __post_init__(self) -> None:
        if self.max_resident_models < 1 or self.max_batch_requests < 1:
            raise ValueError(f"instance {self.instance_id}: needs room for one model and one request")
        if self.kv_bytes < 1 or self.weight_bytes < 1:
            raise ValueError(f"instance {self.instance_id}: KV and weight capacities must be positive")
