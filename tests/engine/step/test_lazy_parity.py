"""The parity suite on a device whose copies land as late as they may: weights and KV leave it and come back, to other
pages, between tokens; the tokens stay those of ``generate()``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest
import torch
from torch import Tensor

from aegaeon.device.common.protocol import Stream, VirtualRange
from aegaeon.device.factory import make_device
from aegaeon.engine.architecture.architecture import inspect_model
from aegaeon.engine.attention.kv_arena import KvArena
from aegaeon.engine.step.model import Model
from aegaeon.engine.step.runner import Runner
from tests.engine.greedy import POISON, Greedy, blocks_of
from tests.engine.zoo import ARCHITECTURES, NEW_TOKENS, Zoo

PAGE = 4096
SLABS = 8
STEPS_HERE = 5
"""After so many the device is somebody else's for a while."""


def pages_for(size_bytes: int) -> int:
    return -(-size_bytes // PAGE)


def places(weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor, int]]:
    """(name, weight, offset): one after the other, each where a cache line begins."""
    offset = 0
    for name, weight in weights.items():
        yield name, weight, offset
        offset += -(-weight.nbytes // 64) * 64


class Visitor:
    """A model and its KV memory that come to a lazy device and leave it."""

    def __init__(self, runner: Runner, weights: Mapping[str, Tensor], slab_bytes: int) -> None:
        self._runner = runner
        self._weights = [(name, weight.contiguous(), offset) for name, weight, offset in places(weights)]
        weight_bytes = self._weights[-1][2] + self._weights[-1][1].nbytes
        self._kv_bytes = SLABS * slab_bytes
        self._visits = 0
        self._pages = pages_for(weight_bytes), pages_for(self._kv_bytes)
        self.device = make_device("lazy", pages=2 * sum(self._pages), page_bytes=PAGE)
        self._place = self.device.reserve(sum(self._pages) * PAGE)
        self._kv_start = self._pages[0] * PAGE
        self._host_kv = torch.full((self._kv_bytes,), POISON, dtype=torch.uint8)
        self._come()
        self.arena = KvArena(self._kv(), slab_bytes)

    def _kv(self) -> Tensor:
        return self._view(self._place, self._kv_start, self._kv_bytes)

    def _view(self, place: VirtualRange, offset: int, size_bytes: int) -> Tensor:
        return self.device.view(place, offset, (size_bytes,), torch.uint8)

    def _come(self) -> None:
        """To the pages that the last visit did not use."""
        first = self._visits % 2 * sum(self._pages)
        self._visits += 1
        self.device.map(self._place, 0, list(range(first, first + sum(self._pages))))
        for _, weight, offset in self._weights:
            source = weight.view(-1).view(torch.uint8)
            self.device.copy(self._view(self._place, offset, weight.nbytes), source, Stream.COPY_IN)
        self.device.copy(self._kv(), self._host_kv, Stream.COPY_IN)
        self.device.wait(Stream.COMPUTE, self.device.record(Stream.COPY_IN))
        views = {
            name: self.device.view(self._place, offset, tuple(weight.shape), weight.dtype)
            for name, weight, offset in self._weights
        }
        self._runner.model.bind(views)

    def leave_and_come_back(self) -> None:
        self.device.wait(Stream.COPY_OUT, self.device.record(Stream.COMPUTE))
        left = self.device.copy(self._host_kv, self._kv(), Stream.COPY_OUT)
        self._runner.model.unbind()
        self.device.synchronize(left)
        self.device.unmap(self._place, 0, sum(self._pages) * PAGE)
        self._come()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_mixed_batches_equal_generate_wherever_weights_and_kv_are(zoo: Zoo, name: str) -> None:
    tiny = zoo(name)
    facts = inspect_model(tiny.path, dtype="float32")
    runner = Runner(Model(tiny.path, dtype="float32"), facts.kv_shape)
    slab_bytes = 2 * facts.kv_shape.block_bytes
    visitor = Visitor(runner, tiny.weights, slab_bytes)
    blocks = blocks_of(facts.kv_shape, slab_bytes, range(SLABS))
    greedy, steps = Greedy(runner, visitor.arena, blocks, tiny.prompts, NEW_TOKENS), 0
    while greedy.step():
        steps += 1
        if steps % STEPS_HERE == 0:
            visitor.leave_and_come_back()
    assert greedy.outputs == tiny.outputs
    assert steps > 2 * STEPS_HERE
    runner.model.unbind()
    visitor.device.close()
