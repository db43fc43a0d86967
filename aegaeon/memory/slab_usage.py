"""How well slabs are used, as Figure 16 of the paper shows it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SlabUsage:
    """Bytes of the slabs that serve a shape (or all shapes), and of the live blocks in them."""

    slabs: int
    assigned_bytes: int
    used_bytes: int

    def __post_init__(self) -> None:
        if not 0 <= self.used_bytes <= self.assigned_bytes:
            raise ValueError(f"{self.used_bytes} bytes used of {self.assigned_bytes} assigned")

    @property
    def fragmented_bytes(self) -> int:
        """Free bytes inside assigned slabs: no other shape can have them."""
        return self.assigned_bytes - self.used_bytes

    @property
    def fragmentation(self) -> float:
        """Free bytes inside assigned slabs over assigned bytes; 0 where nothing is assigned."""
        return self.fragmented_bytes / self.assigned_bytes if self.assigned_bytes else 0.0
