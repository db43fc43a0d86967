"""Weights copied into device pages, at addresses that a model keeps for life."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

import quick_model_loader as qml
from aegaeon.device.common.protocol import Device, Stream, VirtualRange
from aegaeon.engine.step.runner import ModelRunner
from aegaeon.memory.page_pool import OutOfPagesError, PagePool
from aegaeon.runtime.instance.core.weight_store import WeightError
from aegaeon.runtime.instance.host_entry import attach, device_tensors
from aegaeon.runtime.instance.skeletons import MakeRunner, ModelSource, Skeletons
from aegaeon.runtime.instance.weight_upload import Upload, Uploader
from aegaeon.runtime.wire.messages import HostWeights


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
