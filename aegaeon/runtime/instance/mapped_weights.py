"""Weights where they lie: parameters bound straight to the host cache's shared memory (CPU: a switch moves no byte)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

import quick_model_loader as qml
from aegaeon.engine.step.runner import ModelRunner
from aegaeon.runtime.instance.host_entry import attach, host_tensors
from aegaeon.runtime.instance.skeletons import MakeRunner, ModelSource, Skeletons
from aegaeon.runtime.wire.messages import HostWeights


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
