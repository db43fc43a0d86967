"""The weights that an instance holds: host-cache entries it has leased, bound to model skeletons.

``MappedWeights`` binds parameters straight to the host cache's shared memory (CPU: a switch moves no byte);
``CopiedWeights`` copies them into device pages, at addresses that a model keeps for life.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

import quick_model_loader as qml
from aegaeon.core.kv_shape import KvShape
from aegaeon.device.common.protocol import Device, Stream, VirtualRange
from aegaeon.engine.errors import ModelError
from aegaeon.engine.step.runner import ModelRunner
from aegaeon.memory.page_pool import OutOfPagesError, PagePool
from aegaeon.runtime.instance.weight_upload import Upload, Uploader
from aegaeon.runtime.wire.messages import HostWeights


class WeightError(Exception):
    """A model's weights cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model's configuration is, the shape of its KV, and what was settled when it was inspected."""

    path: Path
    kv_shape: KvShape
    dtype: str
    max_context_tokens: int


MakeRunner = Callable[[ModelSource], ModelRunner]
"""Builds a model without weights; raises ``ModelError`` where it does not build."""


class WeightStore(Protocol):
    """The models of an instance."""

    def take(self, weights: HostWeights) -> None:
        """The driver has leased a model's host weights to us. Raises ``WeightError``; the lease is over then."""
        ...

    def ready(self, model: str) -> bool:
        """Whether the model can be bound now."""
        ...

    def bind(self, model: str) -> None:
        """Make it the model that runs."""
        ...

    def runner(self, model: str) -> ModelRunner:
        """The runner of a model that is bound."""
        ...

    def evict(self, model: str) -> None:
        """Drop a model's weights; unknown ones are ignored."""
        ...

    def collect_returned(self) -> list[tuple[str, int]]:
        """Leases (model, id) that are over since the last call."""
        ...

    @property
    def loading(self) -> bool:
        """Whether a copy is under way whose end nobody will announce."""
        ...

    def check_device(self) -> None:
        """Raises what the device says of itself where it is lost: nothing will run there any more."""
        ...

    def prepare_one(self) -> bool:
        """Do one thing ahead of time (build a model's skeleton, capture a graph); False when nothing is left."""
        ...

    def close(self) -> None: ...


class Skeletons:
    """Model skeletons on the meta device, built when first needed or when the instance is idle, and kept."""

    def __init__(self, sources: Mapping[str, ModelSource], make_runner: MakeRunner) -> None:
        self._sources = sources
        self._make_runner = make_runner
        self._runners: dict[str, ModelRunner] = {}
        self._unbuilt = list(sources)

    def runner(self, name: str) -> ModelRunner:
        """Raises ``WeightError`` where the architecture does not build."""
        if name not in self._runners:
            try:
                self._runners[name] = self._make_runner(self._sources[name])
            except ModelError as error:
                raise WeightError(str(error)) from error
        return self._runners[name]

    def prepare_one(self) -> bool:
        """Build the next one that is missing. One that fails is left to fail when it is needed."""
        while self._unbuilt:
            name = self._unbuilt.pop(0)
            if name in self._runners:
                continue
            try:
                self.runner(name)
            except WeightError:
                continue
            return True
        return False


@dataclass(frozen=True, slots=True)
class _Lease:
    lease_id: int
    entry: qml.Entry
    tensors: dict[str, torch.Tensor]


class MappedWeights:
    """Parameters bound to the host cache itself."""

    def __init__(self, sources: Mapping[str, ModelSource], make_runner: MakeRunner) -> None:
        self._skeletons = Skeletons(sources, make_runner)
        self._leases: dict[str, _Lease] = {}
        self._bound: set[str] = set()
        self._returned: list[tuple[str, int]] = []

    def take(self, weights: HostWeights) -> None:
        entry = attach(weights)
        self._leases[weights.model] = _Lease(weights.lease_id, entry, host_tensors(entry))

    def ready(self, model: str) -> bool:
        return model in self._leases

    def bind(self, model: str) -> None:
        if model not in self._bound:
            self._skeletons.runner(model).model.bind(self._leases[model].tensors)
            self._bound.add(model)

    def runner(self, model: str) -> ModelRunner:
        return self._skeletons.runner(model)

    def evict(self, model: str) -> None:
        lease = self._leases.pop(model, None)
        if lease is None:
            return
        if model in self._bound:
            self._skeletons.runner(model).model.unbind()
            self._bound.discard(model)
        lease.tensors.clear()
        lease.entry.close()
        self._returned.append((model, lease.lease_id))

    def collect_returned(self) -> list[tuple[str, int]]:
        returned, self._returned = self._returned, []
        return returned

    @property
    def loading(self) -> bool:
        return False

    def check_device(self) -> None:
        return  # a host is not lost without its processes

    def prepare_one(self) -> bool:
        return self._skeletons.prepare_one()

    def close(self) -> None:
        for model in tuple(self._leases):
            self.evict(model)


@dataclass(slots=True)
class _Resident:
    """A model's place on the device; the copy is under way while something is ``arriving``."""

    lease_id: int
    entry: qml.Entry
    arriving: Upload | None
    tensors: dict[str, torch.Tensor]


class CopiedWeights:
    """Parameters in device pages. ``pool`` owns the pages; the lease of the host entry lasts as long as the copy."""

    def __init__(
        self,
        sources: Mapping[str, ModelSource],
        device: Device,
        pool: PagePool,
        uploader: Uploader,
        make_runner: MakeRunner,
    ) -> None:
        self._skeletons = Skeletons(sources, make_runner)
        self._uploader = uploader
        self._device = device
        self._pool = pool
        self._ranges: dict[str, VirtualRange] = {}
        self._resident: dict[str, _Resident] = {}
        self._bound: set[str] = set()
        self._returned: list[tuple[str, int]] = []

    def take(self, weights: HostWeights) -> None:
        model, entry = weights.model, attach(weights)
        if model not in self._ranges:
            self._ranges[model] = self._device.reserve(entry.nbytes)
        place = self._ranges[model]
        try:
            pages = self._pool.allocate(model, -(-entry.nbytes // self._pool.page_bytes))
        except OutOfPagesError as error:
            raise WeightError(str(error)) from error
        self._device.map(place, 0, pages)
        memory = self._device.view(place, 0, (entry.nbytes,), torch.uint8)
        arriving = self._uploader.begin(entry, memory)
        self._resident[model] = _Resident(weights.lease_id, entry, arriving, device_tensors(entry, memory))

    def ready(self, model: str) -> bool:
        resident = self._resident.get(model)
        if resident is None:
            return False
        self._settle(model, resident, wait=True)
        return True

    def bind(self, model: str) -> None:
        if model not in self._bound:
            self._skeletons.runner(model).model.bind(self._resident[model].tensors)
            self._bound.add(model)

    def runner(self, model: str) -> ModelRunner:
        return self._skeletons.runner(model)

    def evict(self, model: str) -> None:
        resident = self._resident.pop(model, None)
        if resident is None:
            return
        self._settle(model, resident, wait=True)
        if model in self._bound:
            self._skeletons.runner(model).model.unbind()
            self._bound.discard(model)
        pages = self._pool.owned(model)
        self._device.unmap(self._ranges[model], 0, len(pages) * self._pool.page_bytes)
        self._pool.free(model, pages)

    def collect_returned(self) -> list[tuple[str, int]]:
        for model, resident in self._resident.items():
            self._settle(model, resident, wait=False)
        returned, self._returned = self._returned, []
        return returned

    @property
    def loading(self) -> bool:
        return any(resident.arriving is not None for resident in self._resident.values())

    def check_device(self) -> None:
        # CUDA reports an error that cannot be recovered from at every later call.
        self._device.synchronize(self._device.record(Stream.COMPUTE))

    def prepare_one(self) -> bool:
        return self._skeletons.prepare_one() or any(
            self._skeletons.runner(model).prepare_one() for model in sorted(self._bound)
        )

    def close(self) -> None:
        for model in tuple(self._resident):
            self.evict(model)

    def _settle(self, model: str, resident: _Resident, wait: bool) -> None:
        """Once the copy has landed the host entry is not needed any more."""
        if resident.arriving is None:
            return
        if wait:
            self._device.synchronize(resident.arriving.event)
        elif not self._device.query(resident.arriving.event):
            return
        resident.arriving = None
        resident.entry.close()
        self._returned.append((model, resident.lease_id))


def attach(weights: HostWeights) -> qml.Entry:
    """The model's entry in the node's host cache, mapped here. Raises ``WeightError``."""
    try:
        return qml.attach(weights.handle)
    except qml.LoaderError as error:
        raise WeightError(f"cannot map the weights of {weights.model}: {error}") from error


def host_tensors(entry: qml.Entry) -> dict[str, torch.Tensor]:
    """Views of an entry's tensors, by name. Raises ``WeightError`` for one that torch cannot view."""
    try:
        return entry.torch_all()
    except qml.LoaderError as error:
        raise WeightError(f"model {entry.key}: {error}") from error


def device_tensors(entry: qml.Entry, memory: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same tensors in ``memory``, a device's bytes that are, or will be, a copy of the entry's."""
    return {name: _moved(memory, entry.offset(name), host) for name, host in host_tensors(entry).items()}


def _moved(memory: torch.Tensor, offset_bytes: int, host: torch.Tensor) -> torch.Tensor:
    return memory[offset_bytes : offset_bytes + host.nbytes].view(host.dtype).view(host.shape)
