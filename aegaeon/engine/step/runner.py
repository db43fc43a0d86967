"""Steps of one model: a packed batch in, the logits of the next tokens out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from aegaeon.core.kv_shape import KvShape
from aegaeon.engine.attention.batch import StepBatch
from aegaeon.engine.attention.kv_arena import KvArena, KvView
from aegaeon.engine.attention.paged_step import PagedStep
from aegaeon.engine.attention.sequence_slice import SequenceSlice
from aegaeon.engine.attention.workspace import Workspace
from aegaeon.engine.errors import ModelError
from aegaeon.engine.step.model import Model
from aegaeon.engine.step.packing import WeightPacker
from aegaeon.engine.step.state_step import StatePasses, StatePlaces


class ModelRunner(Protocol):
    """Steps of one model, on the host or on a device."""

    @property
    def model(self) -> Model:
        """What is bound and unbound."""
        ...

    @property
    def kv_shape(self) -> KvShape:
        """The shape of the model's KV blocks."""
        ...

    def step(self, slices: Sequence[SequenceSlice], arena: KvArena) -> Tensor:
        """Feed slices; logits ``[slices that want them, vocabulary]``, which hold until the next step."""
        ...

    def prepare_one(self) -> bool:
        """Do one thing that makes later steps faster; False when nothing is left (or the model is not bound)."""
        ...


class Runner:
    """Runs a model that is bound to its weights, on KV of one shape. ``packer`` is shared by a process' runners."""

    def __init__(self, model: Model, kv_shape: KvShape, packer: WeightPacker | None = None) -> None:
        self.model = model
        self.kv_shape = kv_shape
        self._packer = packer
        self._workspace = Workspace()
        self._states = StatePasses(model, kv_shape) if kv_shape.states else None

    @torch.inference_mode()
    def step(self, slices: Sequence[SequenceSlice], arena: KvArena) -> Tensor:
        """Feed slices; logits ``[slices that want them, vocabulary]`` in the slices' order, in the model's dtype.

        Keys and values of the fed tokens are in the arena afterwards. Raises ``ValueError`` on slices that do not fit
        together, ``ModelError`` if the model has no weights or did not attend as it did at the gate.
        """
        view = arena.view(self.kv_shape, self.model.dtype)
        if self._states is None:
            logits = self._feed(slices, view)
        else:
            logits = self._states.step(slices, lambda some: self._feed(some, view))
        if self._packer is not None:
            self._packer.stepped(self.model)
        return logits

    def _feed(self, slices: Sequence[SequenceSlice], view: KvView) -> Tensor:
        batch = StepBatch.pack(slices, self.kv_shape.block_tokens)
        paged = PagedStep(batch, view, self._workspace)
        if self._states is None or view.states is None:
            logits = self.model.forward(batch.token_ids, batch.positions, batch.logit_rows, paged)
        else:
            places = StatePlaces.of(batch, view, view.memory.device)
            logits = self._states.forward(batch, paged, view.states, places)
        if paged.layers_done != len(self.kv_shape.layers):
            told = f"{paged.layers_done} layers attended, {len(self.kv_shape.layers)} should"
            raise ModelError(f"{self.model.path}: {told}")
        return logits

    def prepare_one(self) -> bool:
        """Weights are packed after steps, a little at a time; nothing is left for idle moments."""
        return False
