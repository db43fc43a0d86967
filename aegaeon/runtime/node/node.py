"""Compose a node: its driver, the memory it owns, and the instances it starts.

A plain class; ``spawn`` starts an instance process and calls back when it ends.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TextIO

import quick_model_loader as qml
from aegaeon.core.config import PoolConfig
from aegaeon.core.cost import CostModel
from aegaeon.core.instance import InstanceSpec
from aegaeon.core.model import ModelSpec
from aegaeon.core.service import ServiceError
from aegaeon.engine.prepared.prepared_model import PreparedModel
from aegaeon.latency.estimate.errors import LatencyError
from aegaeon.latency.online.calibrated_costs import CalibratedCosts, CalibratingScheduler
from aegaeon.latency.online.costs import find_profiles, make_costs
from aegaeon.latency.online.node_device import node_device
from aegaeon.memory.weight_chunks import chunk_bytes, whole_chunks
from aegaeon.runtime.instance.worker_options import WorkerModel, WorkerOptions
from aegaeon.runtime.node.core.disk_kv import DiskTier
from aegaeon.runtime.node.core.driver_core import DriverCore
from aegaeon.runtime.node.driver import Driver
from aegaeon.runtime.node.estate import ESTATE, Estate
from aegaeon.runtime.node.host_weights import Fail, HostWeightCache, Post
from aegaeon.runtime.node.instance_handle import InstanceHandle
from aegaeon.runtime.node.kv_disk import KvDisk
from aegaeon.runtime.node.node_kv import NodeKv
from aegaeon.runtime.node.weight_files import WeightFiles
from aegaeon.runtime.recovery.model_examiner import ExaminedModel, ModelExaminer, NeedsImage
from aegaeon.runtime.wire.clock import MonotonicClock
from aegaeon.runtime.wire.fd_exchange import FdServer, close_fds
from aegaeon.runtime.wire.link import create_link
from aegaeon.runtime.wire.model_failure import ModelFailure, ModelProblem
from aegaeon.runtime.wire.pulse import PulseReader, create_pulse
from aegaeon.scheduler.layout import NoPlacementError, PoolDevice, PoolSpec, Rooms
from aegaeon.scheduler.limits import PoolLimits
from aegaeon.scheduler.log import LoggingScheduler
from aegaeon.scheduler.policies.registry import find_policy
from aegaeon.scheduler.prompt_cost import saved_s
from aegaeon.scheduler.scheduler import Scheduler

logger = logging.getLogger(__name__)

_GPU_RESIDENT_MODELS = 16  # the last page of each may be nearly empty

Ended = Callable[[str], None]
Spawn = Callable[[WorkerOptions, Ended], None]


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """A node's share of the pool: sizes are settled, none is left to guess."""

    config: PoolConfig
    node_id: str
    kv_cache_bytes: int
    weight_cache_bytes: int
    threads_per_instance: int


class Node:
    """Everything that one node owns. ``address`` is where its descriptors are to be had.

    ``estate``: of the driver before this one, which must have ended, and its instances too; it stays the caller's.
    """

    def __init__(
        self,
        options: NodeOptions,
        models: Sequence[PreparedModel],
        spawn: Spawn,
        needs_image: NeedsImage,
        estate: Estate | None = None,
    ) -> None:
        self._options = options
        self._estate = estate
        self._models = {model.spec.name: model for model in models}
        self._spawn = spawn
        self._device = node_device(options.config, options.threads_per_instance)
        self._specs = specs_in_cache(models, options.weight_cache_bytes)
        costs = self._costs()
        self._weight_files = WeightFiles(models)
        self._saved_s = partial(saved_s, costs)
        self._kv = self._make_kv()
        self._instance_specs = plan_instances(options, self._specs, costs)
        self._log = _open_log(options.config.event_log)
        core = DriverCore(
            {spec.name: spec for spec in self._specs},
            self._logged(self.make_scheduler()),
            self._kv,
            {name: model.facts.eos_token_ids for name, model in self._models.items()},
            instance_timeout_s=options.config.instance_timeout_s,
            check=options.config.check,
            disk=None if options.config.kv_disk is None else DiskTier(options.config.kv_disk.size_bytes, self._saved_s),
        )
        self.driver = Driver(
            core,
            self._make_weights,
            MonotonicClock(),
            self._start_instance,
            examine=self._examine,
            disk=None if options.config.kv_disk is None else partial(KvDisk, options.config.kv_disk.path, self._kv.fd),
        )
        self._examiner = ModelExaminer({spec.name: self._examined(spec) for spec in self._specs}, needs_image)
        self._incarnations: dict[str, int] = {}
        self._fds: dict[str, list[int]] = {}
        self._server = FdServer(self._provide)
        self.address = self._server.address
        self.node_id = options.node_id

    def start(self) -> None:
        """Start the instances; they join as they come up."""
        for spec in self._instance_specs:
            self._start_instance(spec)

    def run(self) -> None:
        """Be the driver until ``stop``; then let go of everything."""
        self.driver.run()
        self._server.close()
        self._examiner.close()
        while self._fds:  # watching threads take theirs out at the same time
            close_fds(self._fds.popitem()[1])
        self._kv.close()
        if self._log is not None:
            self._log.close()

    def stop(self) -> None:
        """End ``run``; any thread."""
        self.driver.stop()

    def beat(self, within_s: float) -> bool:
        """Whether the driver's loop turns; any thread."""
        turned = threading.Event()
        self.driver.wakeup.post(turned.set)
        return turned.wait(within_s)

    @property
    def complete(self) -> bool:
        """Whether all instances are up; any thread."""
        return self.driver.ready_instances == len(self._instance_specs)

    def _make_kv(self) -> NodeKv:
        config = self._options.config
        largest = max(model.spec.kv_shape.block_bytes for model in self._models.values())
        slab_bytes = max(config.slab_bytes, -(-largest // 4096) * 4096)
        total_bytes = self._options.kv_cache_bytes // slab_bytes * slab_bytes
        if total_bytes == 0:
            raise ServiceError(
                f"a KV cache of {self._options.kv_cache_bytes} bytes holds no slab of {slab_bytes} bytes: "
                "raise --kv-cache or lower --slab-size"
            )
        self._slab_bytes = slab_bytes
        shapes = [model.spec.kv_shape for model in self._models.values()]
        left = None if self._estate is None else (self._estate.kv, self._estate.kv_index)
        return NodeKv(
            total_bytes,
            slab_bytes,
            shapes,
            left,
            prefix_cache=config.prefix_cache,
            worth=self._saved_s,
            version=self._weight_files.version,
        )

    def _make_weights(self, post: Post, fail: Fail) -> HostWeightCache:
        paths: dict[str, Path] = {name: model.path for name, model in self._models.items()}
        try:
            left = None if self._estate is None else (self._estate.weights, self._estate.weights_journal)
            changed = self._weight_files.changed
            cache = HostWeightCache(self._options.weight_cache_bytes, paths, post, fail, left, changed)
        except qml.LoaderError as error:
            raise ServiceError(f"cannot have --weight-cache: {error}") from error
        if self._options.config.device == "cuda":
            cache.wait_until_prepared()  # instances pin it, which would give it small pages
        return cache

    def make_scheduler(self) -> CalibratingScheduler:
        """A fresh scheduler for this node: fed its event log, it gives the same commands."""
        config = self._options.config
        limits = PoolLimits(
            self._kv.total_bytes,
            self._slab_bytes,
            max_queued_requests=config.max_queued_requests,
            host_weight_bytes=self._host_limit_bytes(),
        )
        costs, policy = self._costs(), find_policy(config.policy)
        make = (policy.checked() if config.check else policy).scheduler
        return CalibratingScheduler(make(self._specs, costs, limits, ()), costs)

    def _host_limit_bytes(self) -> int | None:
        """What the host cache holds, where that is not everything."""
        capacity_bytes = self._options.weight_cache_bytes
        return None if sum(spec.weight_bytes for spec in self._specs) <= capacity_bytes else capacity_bytes

    def _logged(self, scheduler: Scheduler) -> Scheduler:
        log = self._log
        return scheduler if log is None else LoggingScheduler(scheduler, lambda line: log.write(line + "\n"))

    def _costs(self) -> CalibratedCosts:
        models = tuple(self._models.values())
        try:
            measured = find_profiles(self._options.config.profile_dir, self._device.name, models)
        except LatencyError as error:
            raise ServiceError(f"--profile-dir: {error}") from error
        costs = make_costs(self._specs, self._models, measured, self._device.rates)
        return CalibratedCosts(costs, self._models.keys() - measured.keys())

    def _start_instance(self, spec: InstanceSpec) -> None:
        """Raises ``OSError`` where there are no descriptors for what leads to it."""
        before = self._incarnations.get(spec.instance_id, -1)
        self._forget_fds(f"{spec.instance_id}:{before}")  # one that was given up may be on its way still
        incarnation = self._incarnations[spec.instance_id] = before + 1
        handle = self._make_handle(spec, incarnation)
        self.driver.wakeup.post(lambda: self.driver.add_instance(handle))
        key = handle.key

        def ended(reason: str) -> None:
            self._forget_fds(key)
            self.driver.wakeup.post(lambda: self.driver.instance_died(key, reason))

        try:
            self._spawn(self._worker_options(spec, key), ended)
        except Exception as error:  # no thread, no process: it has ended before it began
            logger.exception("instance %s cannot be started", key)
            ended(f"it cannot be started: {type(error).__name__}: {error}")

    def _make_handle(self, spec: InstanceSpec, incarnation: int) -> InstanceHandle:
        """Everything that leads to a new process, or nothing: raises ``OSError``."""
        with contextlib.ExitStack() as undo:
            link, fds = create_link()
            undo.callback(close_fds, fds)
            undo.callback(link.close)
            pulse_fd = create_pulse()
            undo.callback(os.close, pulse_fd)
            handle = InstanceHandle(spec, incarnation, link, PulseReader(os.dup(pulse_fd)))
            undo.pop_all()
        self._fds[f"instance:{handle.key}"] = fds
        self._fds[f"pulse:{handle.key}"] = [pulse_fd]
        return handle

    def _forget_fds(self, key: str) -> None:
        """What a process that died did not fetch."""
        for kind in ("instance", "pulse"):
            close_fds(self._fds.pop(f"{kind}:{key}", ()))

    def _examined(self, spec: ModelSpec) -> ExaminedModel:
        model = self._models[spec.name]
        return ExaminedModel(
            model.config.path, model.path, spec.weight_bytes, model.fingerprint, model.files, model.facts.dtype
        )

    def _examine(self, failure: ModelFailure, done: Callable[[ModelProblem | None], None]) -> None:
        def examined(problem: ModelProblem | None) -> None:
            self._weight_files.changed(failure.model)  # nothing of it is under way: it begins with what is there now
            done(problem)

        self._examiner.examine(failure, lambda problem: self.driver.wakeup.post(partial(examined, problem)))

    def _worker_options(self, spec: InstanceSpec, key: str) -> WorkerOptions:
        models = tuple(
            WorkerModel(
                name,
                model.path,
                model.spec.kv_shape,
                model.facts.dtype,
                model.spec.max_context_tokens,
                model.facts.eos_token_ids,
            )
            for name, model in self._models.items()
        )
        return WorkerOptions(
            spec,
            key,
            self.address,
            models,
            self._slab_bytes,
            self._kv.total_bytes,
            self._options.threads_per_instance,
            self._options.config.prefill_chunk_tokens,
            self._options.config.device,
            self._options.config.copy_to_device,
            self._options.config.page_bytes,
            *self._gpu(spec),
            timeout_s=self._options.config.instance_timeout_s,
            packed_bytes=self._options.weight_cache_bytes // 2 // len(self._instance_specs),
        )

    def _gpu(self, spec: InstanceSpec) -> tuple[int, str]:
        """Its number and what its process is to see. Instances go round the GPUs, in their order."""
        gpus = self._device.gpus
        if not gpus:
            return 0, ""
        gpu = gpus[self._instance_specs.index(spec) % len(gpus)]
        return gpu.ordinal, gpu.visible

    def _provide(self, name: str) -> list[int]:
        """On the descriptor server's thread."""
        kind, _, rest = name.partition(":")
        if kind == "frontend":
            link, fds = create_link()
            self.driver.wakeup.post(lambda: self.driver.add_frontend(rest, link))
            return fds
        if kind == "slabs":
            return [os.dup(self._kv.fd)]
        if kind == ESTATE:
            return [*self._kv.heirlooms(), *self.driver.weights.heirlooms()]
        return self._fds.pop(name)  # an instance opens its link once


def _open_log(path: Path | None) -> TextIO | None:
    try:
        return None if path is None else path.open("w")
    except OSError as error:
        raise ServiceError(
            f"cannot write the event log {path}: {error.strerror}; choose another --event-log"
        ) from error


def specs_in_cache(models: Sequence[PreparedModel], cache_bytes: int) -> tuple[ModelSpec, ...]:
    """What schedulers are told of models: their weights take whole chunks of the host cache."""
    chunk = chunk_bytes(cache_bytes)
    return tuple(replace(model.spec, weight_bytes=whole_chunks(model.spec.weight_bytes, chunk)) for model in models)


def plan_instances(options: NodeOptions, models: Sequence[ModelSpec], costs: CostModel) -> list[InstanceSpec]:
    """The node's instances and their capacities; raises ``ServiceError`` where a model fits none of them."""
    try:
        layout = find_policy(options.config.policy).lay_out(node_pool(options, models), models, {}, costs)
    except NoPlacementError as error:
        raise ServiceError(f"{error}: {_remedy(options, models)}") from error
    names = [
        f"{options.node_id}-{group.role}-{index}" for group in options.config.instances for index in range(group.count)
    ]
    return [replace(placed.spec, instance_id=name) for name, placed in zip(names, layout.instances, strict=True)]


def node_pool(options: NodeOptions, models: Sequence[ModelSpec]) -> PoolSpec:
    """The node as policies lay it out: an instance is a device, and what it may hold is decided.

    In place, weights stay leased from the host cache while they are resident: where that holds all models an instance
    may keep them all, else its even share, so that they never lease more than there is. Copying, they have the device
    to themselves: three quarters of it, or what the resident models need.
    """
    config = options.config
    roles = tuple(group.role for group in config.instances for _ in range(group.count))
    residents = _resident_models(config, len(models))
    if config.copy_to_device and config.device_bytes is not None:
        sizes = sorted((model.weight_bytes for model in models), reverse=True)
        weight_bytes = min(config.device_bytes * 3 // 4, sum(sizes[:residents]))
        rooms = Rooms(weight_bytes, config.device_bytes - weight_bytes, residents)
    else:
        cache_bytes = options.weight_cache_bytes
        all_fit = sum(model.weight_bytes for model in models) <= cache_bytes
        rooms = Rooms(cache_bytes if all_fit else cache_bytes // len(roles), options.kv_cache_bytes, residents)
    memory_bytes = rooms.weight_bytes + rooms.kv_bytes
    devices = tuple(PoolDevice("an instance", memory_bytes, rooms=rooms) for _ in roles)
    return PoolSpec(devices, roles=roles, max_batch_requests=config.max_batch_requests)


def _resident_models(config: PoolConfig, models: int) -> int:
    """Where nothing is copied residency costs nothing; else the paper's layout: the running model and the next one.
    A GPU's memory is a cache of many."""
    if config.device == "cuda":
        return config.resident_models or min(models, _GPU_RESIDENT_MODELS)
    return config.resident_models or (2 if config.copy_to_device else models)


def _remedy(options: NodeOptions, models: Sequence[ModelSpec]) -> str:
    """What gives the largest model room."""
    largest_bytes = max(model.weight_bytes for model in models)
    if options.config.copy_to_device:
        return f"raise --device-memory to at least {largest_bytes * 4 // 3} bytes"
    count = sum(group.count for group in options.config.instances)
    return f"raise --weight-cache to at least {largest_bytes * count} bytes, or run fewer than {count} --instances"
