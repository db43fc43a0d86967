"""What the simulated hardware does, as numbers: bandwidths, overheads, host memory."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Constants:
    """Constants of a run; the defaults are stated in ``sim.study.hardware``.

    ``weight_bytes_per_s`` and ``kv_bytes_per_s`` are of one device and direction; both share its copy engine.
    ``disk_bytes_per_s`` and ``kv_disk_bytes``, for KV, are of a node.
    ``prefill_chunk_tokens``: prompts are processed in chunks of this size together
    with the turn's decoding members (None: whole, and the decoding members wait). ``control_s`` is what a turn's
    command takes to reach its instance: from one turn's last step to the next one's first. ``kv_streams_out``: KV
    leaves while a turn runs, so that only the block being filled is left at its end; else all that the turn wrote goes
    at its end. ``mixed_overlap``: how much of the smaller of the fixed costs of prefill and decode is saved where a
    step does both: all where both are the reading of the weights, nothing where tokens are computed one after another.
    ``step_quantum_s``: a step takes a whole number of these, rounded down (None: as long as it takes).
    """

    weight_bytes_per_s: float
    kv_bytes_per_s: float
    disk_bytes_per_s: float
    host_memory_bytes: int
    kv_cache_bytes: int
    slab_bytes: int
    kv_disk_bytes: int = 0
    switch_overhead_s: float = 0.0
    page_bytes: int = GIB
    prefill_chunk_tokens: int | None = None
    step_quantum_s: float | None = None
    control_s: float = 0.0
    kv_streams_out: bool = True
    mixed_overlap: float = 1.0

    def __post_init__(self) -> None:
        if min(self.weight_bytes_per_s, self.kv_bytes_per_s, self.disk_bytes_per_s) <= 0:
            raise ValueError(f"bandwidths must be positive: {self}")
        if self.host_memory_bytes < 1 or self.page_bytes < 1 or min(self.switch_overhead_s, self.control_s) < 0:
            raise ValueError(f"memory must be positive, overheads not negative: {self}")
        if not 0.0 <= self.mixed_overlap <= 1.0:
            raise ValueError(f"mixed_overlap is a share: {self}")
        if self.step_quantum_s is not None and self.step_quantum_s <= 0:
            raise ValueError(f"the quantum of steps must be positive: {self}")
