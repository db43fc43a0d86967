"""The weights that an instance holds: host-cache entries it has leased, bound to model skeletons.

``MappedWeights`` binds parameters straight to the host cache's shared memory (CPU: a switch moves no byte);
``CopiedWeights`` copies them into device pages, at addresses that a model keeps for life.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from aegaeon.core.kv_shape import KvShape
from aegaeon.device.protocol import Device, Event, Stream, VirtualRange
from aegaeon.device.shared_memory import map_fd
from aegaeon.engine.errors import ModelError
from aegaeon.engine.model import Model
from aegaeon.engine.packing import WeightPacker
from aegaeon.engine.runner import Runner
from aegaeon.memory.page_pool import OutOfPagesError, PagePool
from aegaeon.runtime.fd_exchange import FdExchangeError, fetch_fds
from aegaeon.runtime.messages import HostTensor, HostWeights

_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}


class WeightError(Exception):
    """A model's weights cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model's configuration is, the shape of its KV, and what was settled when it was inspected."""

    path: Path
    kv_shape: KvShape
    dtype: str
    max_context_tokens: int


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

    def runner(self, model: str) -> Runner:
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

    def prepare_one(self) -> bool:
        """Build one model's skeleton ahead of time; False when all are there."""
        ...

    def close(self) -> None: ...


class Skeletons:
    """Model skeletons on the meta device, built when first needed or when the instance is idle, and kept."""

    def __init__(self, sources: Mapping[str, ModelSource], packer: WeightPacker) -> None:
        self._sources = sources
        self._packer = packer
        self._models: dict[str, Model] = {}
        self._runners: dict[str, Runner] = {}
        self._unbuilt = list(sources)

    def model(self, name: str) -> Model:
        """Raises ``WeightError`` where the architecture does not build."""
        if name not in self._models:
            source = self._sources[name]
            try:
                model = Model(source.path, dtype=source.dtype, max_context_tokens=source.max_context_tokens)
            except ModelError as error:
                raise WeightError(str(error)) from error
            self._models[name], self._runners[name] = model, Runner(model, source.kv_shape, self._packer)
        return self._models[name]

    def runner(self, name: str) -> Runner:
        self.model(name)
        return self._runners[name]

    def prepare_one(self) -> bool:
        """Build the next one that is missing. One that fails is left to fail when it is needed."""
        while self._unbuilt:
            name = self._unbuilt.pop(0)
            if name in self._models:
                continue
            try:
                self.model(name)
            except WeightError:
                continue
            return True
        return False


@dataclass(frozen=True, slots=True)
class _Lease:
    lease_id: int
    tensors: dict[str, torch.Tensor]


class MappedWeights:
    """Parameters bound to the host cache itself."""

    def __init__(self, sources: Mapping[str, ModelSource], address: str, packer: WeightPacker) -> None:
        self._skeletons = Skeletons(sources, packer)
        self._address = address
        self._leases: dict[str, _Lease] = {}
        self._bound: set[str] = set()
        self._returned: list[tuple[str, int]] = []

    def take(self, weights: HostWeights) -> None:
        self._leases[weights.model] = _Lease(weights.lease_id, tensors_in(map_entry(self._address, weights), weights))

    def ready(self, model: str) -> bool:
        return model in self._leases

    def bind(self, model: str) -> None:
        if model not in self._bound:
            self._skeletons.model(model).bind(self._leases[model].tensors)
            self._bound.add(model)

    def runner(self, model: str) -> Runner:
        return self._skeletons.runner(model)

    def evict(self, model: str) -> None:
        lease = self._leases.pop(model, None)
        if lease is None:
            return
        if model in self._bound:
            self._skeletons.model(model).unbind()
            self._bound.discard(model)
        lease.tensors.clear()
        self._returned.append((model, lease.lease_id))

    def collect_returned(self) -> list[tuple[str, int]]:
        returned, self._returned = self._returned, []
        return returned

    @property
    def loading(self) -> bool:
        return False

    def prepare_one(self) -> bool:
        return self._skeletons.prepare_one()

    def close(self) -> None:
        for model in tuple(self._leases):
            self.evict(model)


@dataclass(slots=True)
class _Resident:
    """A model's place on the device; the copy is under way while there is an ``arriving`` event."""

    weights: HostWeights
    host: torch.Tensor | None
    arriving: Event | None
    tensors: dict[str, torch.Tensor]


class CopiedWeights:
    """Parameters in device pages. ``pool`` owns the pages; the lease of the host entry lasts as long as the copy."""

    def __init__(
        self, sources: Mapping[str, ModelSource], address: str, device: Device, pool: PagePool, packer: WeightPacker
    ) -> None:
        self._skeletons = Skeletons(sources, packer)
        self._address = address
        self._device = device
        self._pool = pool
        self._ranges: dict[str, VirtualRange] = {}
        self._resident: dict[str, _Resident] = {}
        self._bound: set[str] = set()
        self._returned: list[tuple[str, int]] = []

    def take(self, weights: HostWeights) -> None:
        host = map_entry(self._address, weights)
        size_bytes = weights.total_bytes
        if weights.model not in self._ranges:
            self._ranges[weights.model] = self._device.reserve(size_bytes)
        place = self._ranges[weights.model]
        try:
            pages = self._pool.allocate(weights.model, -(-size_bytes // self._pool.page_bytes))
        except OutOfPagesError as error:
            raise WeightError(str(error)) from error
        self._device.map(place, 0, pages)
        memory = self._device.view(place, 0, (size_bytes,), torch.uint8)
        arriving = self._device.copy(memory, host, Stream.COPY_IN)
        self._resident[weights.model] = _Resident(weights, host, arriving, tensors_in(memory, weights))

    def ready(self, model: str) -> bool:
        resident = self._resident.get(model)
        if resident is None:
            return False
        self._settle(model, resident, wait=True)
        return True

    def bind(self, model: str) -> None:
        if model not in self._bound:
            self._skeletons.model(model).bind(self._resident[model].tensors)
            self._bound.add(model)

    def runner(self, model: str) -> Runner:
        return self._skeletons.runner(model)

    def evict(self, model: str) -> None:
        resident = self._resident.pop(model, None)
        if resident is None:
            return
        self._settle(model, resident, wait=True)
        if model in self._bound:
            self._skeletons.model(model).unbind()
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

    def prepare_one(self) -> bool:
        return self._skeletons.prepare_one()

    def close(self) -> None:
        for model in tuple(self._resident):
            self.evict(model)

    def _settle(self, model: str, resident: _Resident, wait: bool) -> None:
        """Once the copy has landed the host entry is not needed any more."""
        if resident.arriving is None:
            return
        if wait:
            self._device.synchronize(resident.arriving)
        elif not self._device.query(resident.arriving):
            return
        resident.arriving = resident.host = None
        self._returned.append((model, resident.weights.lease_id))


def map_entry(address: str, weights: HostWeights) -> torch.Tensor:
    """The bytes of a host-cache entry; the mapping goes with the last view of it. Raises ``WeightError``."""
    try:
        (fd,) = fetch_fds(address, weights.name)
    except FdExchangeError as error:
        raise WeightError(str(error)) from error
    try:
        return map_fd(fd, weights.total_bytes, writable=True)
    except OSError as error:
        raise WeightError(f"cannot map the weights of {weights.model}: {error}") from error
    finally:
        os.close(fd)


def tensors_in(memory: torch.Tensor, weights: HostWeights) -> dict[str, torch.Tensor]:
    """Views of an entry's tensors, by name. Raises ``WeightError`` for one that torch cannot view."""
    return {tensor.name: _view(memory, weights.model, tensor) for tensor in weights.tensors}


def _view(base: torch.Tensor, model: str, tensor: HostTensor) -> torch.Tensor:
    dtype = _DTYPES.get(tensor.dtype)
    if dtype is None:
        raise WeightError(f"model {model}: tensor {tensor.name} has dtype {tensor.dtype}, which torch does not have")
    size_bytes = dtype.itemsize
    for extent in tensor.shape:
        size_bytes *= extent
    if tensor.offset_bytes % dtype.itemsize:
        raise WeightError(f"model {model}: tensor {tensor.name} is not aligned to its dtype {tensor.dtype}")
    raw = base[tensor.offset_bytes : tensor.offset_bytes + size_bytes]
    return raw.view(dtype).view(tensor.shape)
