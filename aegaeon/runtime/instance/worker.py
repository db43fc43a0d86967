"""Compose an instance in its own process: device, engine, links."""

from __future__ import annotations

import contextlib
import logging
import os

import torch

import quick_model_loader as qml
from aegaeon.core.kv_shape import KvShape
from aegaeon.device.common.protocol import Device
from aegaeon.device.common.shared_tensor import map_fd
from aegaeon.device.cuda.device import CudaDevice
from aegaeon.device.cuda.inventory import VISIBLE_DEVICES
from aegaeon.device.cuda.torch_streams import TorchGraphs
from aegaeon.device.factory import make_device
from aegaeon.engine.attention.kv_arena import KvArena
from aegaeon.engine.sampling.chooser import Chooser
from aegaeon.engine.sampling.device_sampler import DeviceSampler
from aegaeon.engine.sampling.sampler import Sampler
from aegaeon.engine.step.device_engine import DeviceEngine
from aegaeon.engine.step.model import Model
from aegaeon.engine.step.packing import WeightPacker
from aegaeon.engine.step.runner import ModelRunner, Runner
from aegaeon.memory.page_pool import PagePool
from aegaeon.runtime.instance.copied_weights import CopiedWeights
from aegaeon.runtime.instance.core.instance_core import InstanceCore
from aegaeon.runtime.instance.core.instance_model import InstanceModel
from aegaeon.runtime.instance.device_kv import DeviceKv, padding_bytes
from aegaeon.runtime.instance.in_place_kv import InPlaceKv
from aegaeon.runtime.instance.instance import Instance
from aegaeon.runtime.instance.mapped_weights import MappedWeights
from aegaeon.runtime.instance.model_engine import EngineKv, EngineWeights, ModelEngine
from aegaeon.runtime.instance.skeletons import MakeRunner, ModelSource
from aegaeon.runtime.instance.token_sinks import TokenSinks
from aegaeon.runtime.instance.weight_upload import LoaderUploader, PlainUploader, Uploader
from aegaeon.runtime.instance.worker_options import WorkerOptions
from aegaeon.runtime.recovery.vigil import look_interval_s
from aegaeon.runtime.wire.clock import MonotonicClock
from aegaeon.runtime.wire.fd_exchange import FdExchangeError, fetch_fds
from aegaeon.runtime.wire.link import open_link
from aegaeon.runtime.wire.messages import Started
from aegaeon.runtime.wire.pulse import LoopPulse, NoPulse, Pulse

_MAX_PACKED_BYTES = 2 << 30

logger = logging.getLogger(__name__)


def run_instance(options: WorkerOptions) -> None:
    """As ``run_worker``, in a process of its own, whose log says what it ends of."""
    try:
        run_worker(options)
    except FdExchangeError as error:  # its driver is dead or stuck; whoever watches that one tells of it
        logger.error("this instance ends: %s", error)
        raise
    except BaseException:
        logger.exception("this instance ends")
        raise


def run_worker(options: WorkerOptions) -> None:
    """Run an instance until its driver shuts it down."""
    if options.visible:
        os.environ[VISIBLE_DEVICES] = options.visible  # before this process asks CUDA anything
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    with contextlib.ExitStack() as stack:
        pulse = _open_pulse(options, stack)
        driver = open_link(options.address, f"instance:{options.key}")
        sinks = TokenSinks(options.key)
        weights, kv = _copying(options, stack) if options.copy_to_device else _in_place(options)
        clock = MonotonicClock()
        chooser = Chooser(DeviceSampler() if options.device == "cuda" else Sampler())
        core = InstanceCore(
            options.spec.instance_id,
            {model.name: InstanceModel(model.name, model.kv_shape, model.eos_ids) for model in options.models},
            weights,
            kv,
            ModelEngine(weights, kv, chooser, clock, pulse),
            clock.now_s,
            options.chunk_tokens,
        )
        driver.send(Started(options.spec.instance_id, os.getpid()))
        Instance(core, driver, sinks, clock, pulse).run()
    sinks.close()
    driver.close()


def _open_pulse(options: WorkerOptions, stack: contextlib.ExitStack) -> LoopPulse:
    """Beats from now on: what follows takes seconds on a GPU."""
    if options.timeout_s is None:
        return NoPulse()
    (fd,) = fetch_fds(options.address, f"pulse:{options.key}")
    return stack.enter_context(contextlib.closing(Pulse(fd, look_interval_s(options.timeout_s))))


def _sources(options: WorkerOptions) -> dict[str, ModelSource]:
    return {
        model.name: ModelSource(model.path, model.kv_shape, model.dtype, model.max_context_tokens)
        for model in options.models
    }


def _shapes(options: WorkerOptions) -> dict[str, KvShape]:
    return {model.name: model.kv_shape for model in options.models}


def _host_runners(options: WorkerOptions) -> MakeRunner:
    """Packed copies of hot weights are private memory: no more of it than half of what the weights may take."""
    packed_bytes = options.spec.weight_bytes // 2 if options.packed_bytes is None else options.packed_bytes
    packer = WeightPacker(min(_MAX_PACKED_BYTES, packed_bytes))

    def make(source: ModelSource) -> ModelRunner:
        model = Model(source.path, dtype=source.dtype, max_context_tokens=source.max_context_tokens)
        return Runner(model, source.kv_shape, packer)

    return make


def _device_runners(device: CudaDevice, ordinal: int) -> MakeRunner:
    engine = DeviceEngine(device.torch_device, TorchGraphs(ordinal))
    return lambda source: engine.runner(source.path, source.kv_shape, source.dtype, source.max_context_tokens)


def _slabs(options: WorkerOptions) -> torch.Tensor:
    (fd,) = fetch_fds(options.address, "slabs")
    try:
        return map_fd(fd, options.kv_total_bytes, writable=True)
    finally:
        os.close(fd)


def _in_place(options: WorkerOptions) -> tuple[EngineWeights, EngineKv]:
    """Weights and KV where they lie, in the node's shared memory."""
    weights = MappedWeights(_sources(options), _host_runners(options))
    return weights, InPlaceKv(KvArena(_slabs(options), options.slab_bytes), _shapes(options))


def _copying(options: WorkerOptions, stack: contextlib.ExitStack) -> tuple[EngineWeights, EngineKv]:
    """Weights and KV in device pages: a fixed share for the KV, the rest for the weights of resident models."""
    spec, page_bytes, shapes = options.spec, options.page_bytes, _shapes(options)
    slabs_bytes = spec.kv_bytes // options.slab_bytes * options.slab_bytes
    padded_bytes = slabs_bytes + (padding_bytes(shapes.values()) if options.device == "cuda" else 0)
    kv_pages = -(-max(spec.kv_bytes, padded_bytes) // page_bytes)
    pages = kv_pages + spec.max_resident_models + spec.weight_bytes // page_bytes
    made = make_device(
        options.device, pages=pages, page_bytes=page_bytes, memory_flag="--device-memory", ordinal=options.ordinal
    )
    device = stack.enter_context(contextlib.closing(made))
    pool = PagePool(pages, page_bytes)
    place = device.reserve(kv_pages * page_bytes)
    device.map(place, 0, pool.allocate("kv", kv_pages))
    memory, host = device.view(place, 0, (padded_bytes,), torch.uint8), _slabs(options)
    device.pin(host)
    kv = DeviceKv(device, memory, host, options.slab_bytes, shapes)
    return CopiedWeights(_sources(options), device, pool, *_weight_parts(options, device)), kv


def _weight_parts(options: WorkerOptions, device: Device) -> tuple[Uploader, MakeRunner]:
    """How weights get to the device, and what runs there."""
    if isinstance(device, CudaDevice):
        uploader = LoaderUploader(device, qml.CudaDevice(options.ordinal))
        return uploader, _device_runners(device, options.ordinal)
    return PlainUploader(device), _host_runners(options)
