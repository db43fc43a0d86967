"""What an instance process must know, as its driver tells it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from aegaeon.core.instance import InstanceSpec
from aegaeon.core.kv_shape import KvShape


@dataclass(frozen=True, slots=True)
class WorkerModel:
    """A model as an instance process needs it."""

    name: str
    path: Path
    kv_shape: KvShape
    dtype: str
    max_context_tokens: int
    eos_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """Everything an instance process must know; ``key`` is its incarnation, ``address`` its driver's, ``ordinal`` its
    GPU's number among those that it sees: ``visible``, or where that is empty what its parent sees. ``timeout_s``: how
    long it may be silent before its driver kills it; None where nobody watches. ``packed_bytes``: of private memory for
    packed copies of hot weights; None: half of what its weights may take."""

    spec: InstanceSpec
    key: str
    address: str
    models: tuple[WorkerModel, ...]
    slab_bytes: int
    kv_total_bytes: int
    threads: int
    chunk_tokens: int
    device: str
    copy_to_device: bool
    page_bytes: int
    ordinal: int = 0
    visible: str = ""
    timeout_s: float | None = None
    packed_bytes: int | None = None
