"""Weights of linear layers in oneDNN's blocked layout: a bounded cache beside the weights.

On CPUs a bfloat16 product with a weight as it is stored spends up to half its time rearranging it. A packed copy saves
that (1.4 to 1.9 times for batches of 2 to 32 tokens), but is opaque: it cannot come from a file. So a model's weights
are packed a piece at a time, after its steps, in the order in which it uses them; a model that is run seldom never
pays, and a switch never waits. The copies outlive unbinding, since a model's weights have the same values whenever it
is bound.
"""

from __future__ import annotations

from collections import OrderedDict, deque

import torch

from aegaeon.engine.step.linear_groups import InputWatch
from aegaeon.engine.step.model import Model
from aegaeon.engine.step.packed_linear import Piece, pieces

_IDLE_STEPS = 4
"""Steps of a model before its first weight is packed. In the second, its layers are watched."""

_PIECE_BYTES = 16 << 20
"""Packed after one step, about: a few milliseconds."""


class WeightPacker:
    """Packed weights of the models of a process, at most ``budget_bytes``.

    Where they do not fit, those of the model that ran longest ago go, but only if others made ``stale_steps`` steps
    since: models that take turns would only undo each other's work. Only bfloat16 models are packed, so that float32
    stays bit for bit what Transformers computes.
    """

    def __init__(self, budget_bytes: int, stale_steps: int = 1000) -> None:
        self._budget_bytes = budget_bytes
        self._stale_steps = stale_steps
        self._steps = 0
        self._packed: OrderedDict[Model, _PackedModel] = OrderedDict()

    @property
    def used_bytes(self) -> int:
        """Bytes of all packed weights."""
        return sum(packed.bytes for packed in self._packed.values())

    def packed_bytes(self, model: Model) -> int:
        """Bytes packed of a model."""
        return self._packed[model].bytes if model in self._packed else 0

    def stepped(self, model: Model) -> None:
        """Take note that a bound model ran, and pack one more piece of it if it is time and there is room."""
        if model.dtype is not torch.bfloat16 or self._budget_bytes <= 0 or not _supported():
            return
        if model not in self._packed:
            self._packed[model] = _PackedModel(model)
        self._packed.move_to_end(model)
        packed = self._packed[model]
        self._steps += 1
        packed.stepped(self._steps)
        if packed.next_bytes and self._make_room(packed.next_bytes):
            packed.pack_one()

    def forget(self, model: Model) -> None:
        """Drop what is packed of a model; it may be packed anew."""
        packed = self._packed.pop(model, None)
        if packed is not None:
            packed.remove()

    def _make_room(self, size_bytes: int) -> bool:
        """Whether there is room, if need be after stale models went (never the one that runs)."""
        while self.used_bytes + size_bytes > self._budget_bytes:
            oldest = next(iter(self._packed))
            if self._steps - self._packed[oldest].last_step < self._stale_steps:
                return False
            self.forget(oldest)
        return True


class _PackedModel:
    """What is packed of a model, and what comes next."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._steps = 0
        self._watch: InputWatch | None = None
        self._done: list[Piece] = []
        self._waiting: deque[Piece] = deque()
        self.bytes = 0
        self.last_step = 0

    def stepped(self, now_step: int) -> None:
        self.last_step = now_step
        self._steps += 1
        if self._steps == 1:
            self._watch = InputWatch(self._model.modules)
        elif self._watch is not None:
            groups = self._watch.finish()
            self._watch = None
            self._waiting.extend(piece for group in groups for piece in pieces(group, _PIECE_BYTES))

    @property
    def next_bytes(self) -> int:
        """Bytes that packing would take now, about; 0 if there is nothing to pack (yet)."""
        return self._waiting[0].size_bytes if self._waiting and self._steps > _IDLE_STEPS else 0

    def pack_one(self) -> None:
        """Pack the next piece."""
        self._done.append(self._waiting.popleft())
        self.bytes += self._done[-1].pack()

    def remove(self) -> None:
        if self._watch is not None:
            self._watch.finish()
        for piece in self._done:
            piece.linears.remove()


def _supported() -> bool:
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return bool(available and torch.ops.mkldnn._is_mkldnn_bf16_supported())
