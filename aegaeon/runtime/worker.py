"""Compose an instance in its own process: device, engine, links."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from aegaeon.core.instance import InstanceSpec
from aegaeon.core.kv_shape import KvShape
from aegaeon.device.factory import make_device
from aegaeon.device.shared_memory import map_fd
from aegaeon.engine.kv_arena import KvArena
from aegaeon.engine.packing import WeightPacker
from aegaeon.memory.page_pool import PagePool
from aegaeon.runtime.clock import MonotonicClock
from aegaeon.runtime.device_kv import DeviceKv
from aegaeon.runtime.fd_exchange import fetch_fds
from aegaeon.runtime.instance import Instance, InstanceModel
from aegaeon.runtime.kv_place import InPlaceKv, KvPlace
from aegaeon.runtime.link import open_link
from aegaeon.runtime.messages import Started
from aegaeon.runtime.token_sinks import TokenSinks
from aegaeon.runtime.weight_store import CopiedWeights, MappedWeights, ModelSource, WeightStore

_MAX_PACKED_BYTES = 2 << 30


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
    """Everything an instance process must know; ``key`` is its incarnation, ``address`` its driver's."""

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


def run_worker(options: WorkerOptions) -> None:
    """Run an instance until its driver shuts it down."""
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    driver = open_link(options.address, f"instance:{options.key}")
    sinks = TokenSinks(options.key)
    with contextlib.ExitStack() as stack:
        weights, kv = _copying(options, stack) if options.copy_to_device else _in_place(options)
        instance = Instance(
            options.spec.instance_id,
            {model.name: InstanceModel(model.name, model.kv_shape, model.eos_ids) for model in options.models},
            weights,
            kv,
            driver,
            sinks,
            MonotonicClock(),
            options.chunk_tokens,
        )
        driver.send(Started(options.spec.instance_id, os.getpid()))
        instance.run()
    sinks.close()
    driver.close()


def _sources(options: WorkerOptions) -> dict[str, ModelSource]:
    return {
        model.name: ModelSource(model.path, model.kv_shape, model.dtype, model.max_context_tokens)
        for model in options.models
    }


def _packer(options: WorkerOptions) -> WeightPacker:
    """Packed copies of hot weights are private memory: no more of it than half of what the weights may take."""
    return WeightPacker(min(_MAX_PACKED_BYTES, options.spec.weight_bytes // 2))


def _slabs(options: WorkerOptions) -> torch.Tensor:
    (fd,) = fetch_fds(options.address, "slabs")
    try:
        return map_fd(fd, options.kv_total_bytes, writable=True)
    finally:
        os.close(fd)


def _in_place(options: WorkerOptions) -> tuple[WeightStore, KvPlace]:
    """Weights and KV where they lie, in the node's shared memory."""
    weights = MappedWeights(_sources(options), _packer(options))
    return weights, InPlaceKv(KvArena(_slabs(options), options.slab_bytes))


def _copying(options: WorkerOptions, stack: contextlib.ExitStack) -> tuple[WeightStore, KvPlace]:
    """Weights and KV in device pages: a fixed share for the KV, the rest for the weights of resident models."""
    spec, page_bytes = options.spec, options.page_bytes
    kv_pages = -(-spec.kv_bytes // page_bytes)
    pages = kv_pages + spec.max_resident_models + spec.weight_bytes // page_bytes
    device = stack.enter_context(contextlib.closing(make_device(options.device, pages=pages, page_bytes=page_bytes)))
    pool = PagePool(pages, page_bytes)
    place = device.reserve(kv_pages * page_bytes)
    device.map(place, 0, pool.allocate("kv", kv_pages))
    memory = device.view(place, 0, (spec.kv_bytes // options.slab_bytes * options.slab_bytes,), torch.uint8)
    shapes = {model.name: model.kv_shape for model in options.models}
    kv = DeviceKv(device, memory, _slabs(options), options.slab_bytes, shapes)
    return CopiedWeights(_sources(options), device, pool, _packer(options)), kv
