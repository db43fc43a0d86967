"""One device with weights, KV and an engine, put together as an instance does, for measurements without Ray.

On ``cpu`` it is the copying mode: for trying the measurements themselves out.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

import quick_model_loader as qml
from aegaeon.core.kv_shape import KvShape
from aegaeon.device.common.protocol import Device
from aegaeon.device.common.shared_memory import create_memfd
from aegaeon.device.common.shared_tensor import map_fd
from aegaeon.device.cuda import torch_streams as cuda_torch
from aegaeon.device.cuda.device import CudaDevice
from aegaeon.device.factory import make_device
from aegaeon.engine.architecture.architecture import inspect_model
from aegaeon.engine.attention.kv_arena import KvArena
from aegaeon.engine.attention.sequence_slice import SequenceSlice
from aegaeon.engine.step.device_engine import DeviceEngine
from aegaeon.engine.step.device_runner import DeviceRunner
from aegaeon.memory.page_pool import PagePool
from aegaeon.runtime.instance.copied_weights import CopiedWeights
from aegaeon.runtime.instance.device_kv import padding_bytes
from aegaeon.runtime.instance.skeletons import ModelSource
from aegaeon.runtime.instance.weight_upload import LoaderUploader, PlainUploader, Uploader
from aegaeon.runtime.node.host_weights import wait_until_prepared
from aegaeon.runtime.wire.messages import HostWeights

CONTEXT_TOKENS = 16384
_SLAB_BYTES = 64 << 20
_MOST_HOST_BYTES = 4 << 30
_RESIDENT_MODELS = 2


class Rig:
    """A context manager. ``models`` are folders by name; ``kv_bytes`` of device memory for blocks.

    The device has room for the two largest models. Weights are cached in host memory once one is asked for.
    """

    def __init__(self, kind: str, models: dict[str, Path], page_bytes: int, kv_bytes: int) -> None:
        self.kind = kind
        self.shapes: dict[str, KvShape] = {}
        sources = {}
        for name, path in models.items():
            facts = inspect_model(path, max_context_tokens=CONTEXT_TOKENS, dtype="bfloat16")
            self.shapes[name] = facts.kv_shape
            sources[name] = ModelSource(path, facts.kv_shape, "bfloat16", CONTEXT_TOKENS)
        self.weight_bytes = {name: qml.inspect(path).buffer_bytes for name, path in models.items()}
        pages_of = sorted((-(-size // page_bytes) for size in self.weight_bytes.values()), reverse=True)
        weight_pages = sum(pages_of[:_RESIDENT_MODELS])
        slabs_bytes = kv_bytes // _SLAB_BYTES * _SLAB_BYTES
        if not slabs_bytes:
            raise ValueError(f"{kv_bytes} bytes for KV hold no slab of {_SLAB_BYTES}: raise --kv-gib")
        memory_bytes = slabs_bytes + padding_bytes(self.shapes.values())
        kv_pages = -(-memory_bytes // page_bytes)
        self.device: Device = make_device(
            kind, pages=weight_pages + kv_pages, page_bytes=page_bytes, memory_flag="--kv-gib"
        )
        self.pool = PagePool(weight_pages + kv_pages, page_bytes)
        place = self.device.reserve(kv_pages * page_bytes)
        self.device.map(place, 0, self.pool.allocate("kv", kv_pages))
        self.memory = self.device.view(place, 0, (memory_bytes,), torch.uint8)
        self.memory.zero_()
        self.arena = KvArena(self.memory, _SLAB_BYTES, slabs_bytes)
        self.host = _host_memory(min(slabs_bytes, _MOST_HOST_BYTES))
        self.device.pin(self.host)
        capture = cuda_torch.TorchGraphs(0) if kind == "cuda" else None
        self.engine = DeviceEngine(self.device.torch_device, capture)
        self._paths = models
        self.weights = CopiedWeights(
            sources,
            self.device,
            self.pool,
            self._uploader(),
            lambda s: self.engine.runner(s.path, s.kv_shape, s.dtype, s.max_context_tokens),
        )
        self._leases: dict[int, qml.Entry] = {}
        self._next_lease = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.weights.close()
        self._settle()
        self.device.close()
        if "_store" in self.__dict__:
            self._store.close()

    def synchronize(self) -> None:
        """Wait for all work of the device."""
        if self.kind == "cuda":
            cuda_torch.synchronize()

    def timed_s(self, work: Callable[[], object]) -> float:
        """Seconds from an idle device to an idle device."""
        self.synchronize()
        start_s = time.perf_counter()
        work()
        self.synchronize()
        return time.perf_counter() - start_s

    def forget(self, model: str) -> None:
        """Drop it from the host cache, and from the kernel's."""
        self._settle()
        self._store.evict(model)
        for file in self._paths[model].glob("*.safetensors"):
            fd = os.open(file, os.O_RDONLY)
            try:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)

    def entry(self, model: str) -> qml.Entry:
        """A model's bytes in the host cache; read from disk where they are not there."""
        return self._store.load(self._paths[model], model).result()

    def take(self, model: str) -> None:
        """Begin to copy a model to the device."""
        entry = self.entry(model)
        self._leases[self._next_lease] = entry
        self.weights.take(HostWeights(model, self._next_lease, entry.handle()))
        self._next_lease += 1

    def bind(self, model: str) -> DeviceRunner:
        """Wait for its copy, and make it ready to run."""
        assert self.weights.ready(model), "take comes first"
        self.weights.bind(model)
        runner = self.weights.runner(model)
        assert isinstance(runner, DeviceRunner)
        return runner

    def evict(self, model: str) -> None:
        """Take it off the device."""
        self.weights.evict(model)
        self._settle()

    def blocks(self, model: str, sequences: int, tokens: int) -> list[list[int]]:
        """Block tables for so many sequences, all over the memory. Raises ``ValueError`` where it is too small."""
        shape = self.shapes[model]
        per_slab = _SLAB_BYTES // shape.block_bytes
        slabs = (self.memory.numel() - padding_bytes(self.shapes.values())) // _SLAB_BYTES
        free = [slab * _SLAB_BYTES + index * shape.block_bytes for index in range(per_slab) for slab in range(slabs)]
        each = shape.blocks_for(tokens)
        if sequences * each > len(free):
            raise ValueError(f"{sequences} sequences of {tokens} tokens need {sequences * each} blocks of {len(free)}")
        return [free[first : first + each] for first in range(0, sequences * each, each)]

    def decode(self, runner: DeviceRunner, tables: Sequence[Sequence[int]], position: int) -> torch.Tensor:
        """One decode step of a sequence for each table."""
        return runner.step([SequenceSlice([7], position, table) for table in tables], self.arena)

    def _settle(self) -> None:
        for _, lease_id in self.weights.collect_returned():
            self._leases.pop(lease_id).close()

    def _uploader(self) -> Uploader:
        if isinstance(self.device, CudaDevice):
            return LoaderUploader(self.device, qml.CudaDevice(0))
        return PlainUploader(self.device)

    @cached_property
    def _store(self) -> qml.Store:
        store = qml.Store(sum(self.weight_bytes.values()) + len(self.weight_bytes) * qml.CHUNK_BYTES)
        wait_until_prepared(store)
        return store


def _host_memory(size_bytes: int) -> torch.Tensor:
    fd = create_memfd("gpu-suite-slabs", size_bytes, flag="--kv-gib", prefault=True)
    try:
        return map_fd(fd, size_bytes, writable=True)
    finally:
        os.close(fd)
