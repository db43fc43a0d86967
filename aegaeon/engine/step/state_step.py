"""Steps of models with states: sequences that decode are rows of one pass, others go through the model alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from aegaeon.core.kv_shape import KvShape
from aegaeon.engine.attention.attention import PagedAttention
from aegaeon.engine.attention.batch import StepBatch
from aegaeon.engine.attention.kv_arena import KvView
from aegaeon.engine.attention.sequence_slice import SequenceSlice
from aegaeon.engine.attention.state_cache import StateCache
from aegaeon.engine.attention.state_rows import BlockStates
from aegaeon.engine.step.model import Model


class Packed(Protocol):
    """The tokens of a batch."""

    @property
    def token_ids(self) -> Tensor: ...

    @property
    def positions(self) -> Tensor: ...

    @property
    def logit_rows(self) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class StatePlaces:
    """Where the states of a pass are: read from the blocks ``before`` (None: no sequence has a token yet), and written
    to the blocks ``after``, all in units, when they are of ``tokens`` tokens. ``[sequences]`` each."""

    before: Tensor | None
    after: Tensor
    tokens: Tensor

    @classmethod
    def of(cls, batch: StepBatch, view: KvView, device: torch.device) -> StatePlaces:
        """Of the sequences of a packed batch, which all have tokens or all have none."""
        size, unit = view.shape.block_tokens, view.unit_bytes
        before = [lane.blocks[(lane.start - 1) // size] // unit for lane in batch.lanes if lane.start]
        after = [lane.blocks[(lane.end - 1) // size] // unit for lane in batch.lanes]
        tokens = [lane.end for lane in batch.lanes]
        return cls(
            torch.tensor(before).to(device) if before else None,
            torch.tensor(after).to(device),
            torch.tensor(tokens).to(device),
        )


class StatePasses:
    """Passes of a model that keeps states, with blocks of one shape."""

    def __init__(self, model: Model, shape: KvShape) -> None:
        self._model = model
        self._resumes = shape.resumes
        self._cache = StateCache(model.modules.config, shape.states)

    def forward(self, batch: Packed, paged: PagedAttention, states: BlockStates, places: StatePlaces) -> Tensor:
        """Read states, feed a batch, and leave the new ones. A pass that raises has changed none."""
        if places.before is None:
            self._cache.begin(states.fresh(places.after), fresh=True)
        else:
            self._cache.begin(states.read(places.before))
        shape = (len(places.after), -1)
        token_ids, positions = batch.token_ids.view(shape), batch.positions.view(shape)
        logits = self._model.forward(token_ids, positions, batch.logit_rows, paged, self._cache)
        states.write(places.after, self._cache.values, places.tokens)
        return logits

    def step(self, slices: Sequence[SequenceSlice], feed: Callable[[Sequence[SequenceSlice]], Tensor]) -> Tensor:
        """Feed slices by passes of ``feed``; logits in the order of the slices that want them."""
        passes = _passes(slices)
        parts = [part for numbers in passes for part in self._parts([slices[number] for number in numbers])]
        # What a pass returns may not outlast the next one.
        logits = feed(parts[0]) if len(parts) == 1 else torch.cat([feed(part).clone() for part in parts])
        wanting = [number for numbers in passes for number in numbers if slices[number].wants_logits]
        return logits[sorted(range(len(wanting)), key=wanting.__getitem__)]

    def _parts(self, slices: list[SequenceSlice]) -> Iterator[list[SequenceSlice]]:
        """The slices of a pass, or the tokens of its only one, one by one."""
        piece, last = slices[0], len(slices[0].token_ids) - 1
        if self._resumes or not piece.start or not last:
            yield slices
            return
        for index, token_id in enumerate(piece.token_ids):
            yield [SequenceSlice([token_id], piece.start + index, piece.blocks, piece.wants_logits and index == last)]


def _passes(slices: Sequence[SequenceSlice]) -> list[list[int]]:
    rows = [number for number, piece in enumerate(slices) if piece.goes_on and piece.wants_logits]
    alone = [[number] for number in range(len(slices)) if number not in rows]
    return [rows, *alone] if rows else alone
