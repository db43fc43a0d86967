"""A packed batch on a device, and what is passed to a model as ``paged`` there.

Everything that depends on the batch crosses to the device in one copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from aegaeon.engine.attention.attention import AttentionCall
from aegaeon.engine.attention.batch import StepBatch
from aegaeon.engine.attention.device_attention import DeviceAttention
from aegaeon.engine.attention.kv_arena import HeadRows, KvView
from aegaeon.engine.attention.lanes import Lanes, chunks_of
from aegaeon.engine.step.state_step import StatePlaces


@dataclass(frozen=True, slots=True)
class DeviceBatch:
    """T tokens on a device: ``token_ids`` and ``positions`` ``[1, T]``; where their KV goes, ``units`` and ``slots``
    ``[T]``; ``logit_rows``: rows whose logits are wanted; ``places``: of states, for models that have some."""

    token_ids: Tensor
    positions: Tensor
    units: Tensor
    slots: Tensor
    logit_rows: Tensor
    lanes: Lanes
    places: StatePlaces | None

    @classmethod
    def of(cls, batch: StepBatch, view: KvView, device: torch.device) -> DeviceBatch:
        """Bring a packed batch to the device of a view."""
        tokens = batch.token_ids.shape[1]
        tables = _tables(batch, view)
        decodes = sum(lane.tokens == 1 for lane in batch.lanes)
        pieces = [
            batch.token_ids[0],
            batch.positions[0],
            batch.token_blocks // view.unit_bytes,
            batch.token_slots,
            batch.logit_rows,
            tables.flatten(),
        ]
        sizes = [piece.numel() for piece in pieces]
        token_ids, positions, units, slots, logit_rows, flat = torch.cat(pieces).to(device).split_with_sizes(sizes)
        lanes = Lanes(
            flat.view(tables.shape),
            decodes,
            positions[:decodes],
            chunks_of(batch.lanes),
            max(lane.end for lane in batch.lanes),
        )
        places = StatePlaces.of(batch, view, device) if view.states is not None else None
        return cls(token_ids.view(1, tokens), positions.view(1, tokens), units, slots, logit_rows, lanes, places)


def _tables(batch: StepBatch, view: KvView) -> Tensor:
    """Block tables in units ``[lanes, width]``, each padded with its own last block that is in use."""
    block_tokens = view.shape.block_tokens
    seen = [-(-lane.end // block_tokens) for lane in batch.lanes]
    width = max(seen)
    rows = [
        [*lane.blocks[:count], *([lane.blocks[count - 1]] * (width - count))]
        for lane, count in zip(batch.lanes, seen, strict=True)
    ]
    return torch.tensor(rows) // view.unit_bytes


@dataclass(slots=True)
class DeviceStep:
    """A ``PagedAttention`` for one batch. Layers attend in order: ``layers_done`` have."""

    batch: DeviceBatch
    view: KvView
    attention: DeviceAttention
    layers_done: int = 0
    _write_indices: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def attend(self, call: AttentionCall) -> Tensor:
        """Write the layer's new keys and values, and attend. Output ``[T, heads, value_size]``."""
        keys, values = self.view.keys[self.layers_done], self.view.values[self.layers_done]
        self._write(keys, call.key)
        self._write(values, call.value)
        self.layers_done += 1
        return self.attention.attend(call, keys, values, self.batch.lanes)

    def _write(self, rows: HeadRows, states: Tensor) -> None:
        if rows.geometry not in self._write_indices:
            self._write_indices[rows.geometry] = rows.token_index(self.batch.units, self.batch.slots)
        rows.scatter(self._write_indices[rows.geometry], states[0].transpose(0, 1).to(self.view.dtype))


def clear_fresh(view: KvView, blocks: Sequence[int]) -> None:
    """Zero the blocks that get their first token, for backends that read the rest of them too."""
    for block in blocks:
        view.clear(block)
