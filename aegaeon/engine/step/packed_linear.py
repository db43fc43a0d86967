"""Linear layers that compute with weights in oneDNN's blocked layout, one or a group that reads the same input."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from aegaeon.engine.step.linear_groups import LinearGroup

_BATCH_HINT = 32
"""Tokens the layout is chosen for; it serves all batch sizes well."""


class PackedLinears:
    """Takes the place of a group's ``forward``: the first to be called computes for all, the others take their part."""

    def __init__(self, layers: LinearGroup) -> None:
        self._layers = layers
        self._sizes = [layer.out_features for layer in layers]
        self._pieces: list[Any] = []
        self._input: Tensor | None = None
        self._outputs: tuple[Tensor, ...] = ()

    @property
    def bytes(self) -> int:
        """Bytes of the packed weights."""
        return sum(torch.ops.mkldnn._nbytes(piece) for piece in self._pieces)

    def add(self, rows: Tensor) -> None:
        """Pack the next rows of the weights; the layers compute with them once all are there."""
        self._pieces.append(torch.ops.mkldnn._reorder_linear_weight(rows, _BATCH_HINT))
        if sum(piece.shape[0] for piece in self._pieces) == sum(self._sizes):
            for index, layer in enumerate(self._layers):
                vars(layer)["forward"] = partial(self._forward, index)

    def remove(self) -> None:
        """Let the layers compute as they did; nothing happens if they do."""
        for layer in self._layers:
            vars(layer).pop("forward", None)

    def _forward(self, index: int, states: Tensor) -> Tensor:
        if len(self._layers) == 1:
            return self._compute(states)
        if states is not self._input:
            self._outputs = torch.split(self._compute(states), self._sizes, -1)
            self._input = states
        output = self._outputs[index].contiguous()
        if index == len(self._layers) - 1:
            self._input, self._outputs = None, ()
        return output

    def _compute(self, states: Tensor) -> Tensor:
        bias = self._bias()
        linear = torch.ops.mkldnn._linear_pointwise
        if len(self._pieces) == 1:
            output: Tensor = linear(states, self._pieces[0], bias, "none", [], "")
            return output
        outputs = torch.cat([linear(states, piece, None, "none", [], "") for piece in self._pieces], -1)
        return outputs if bias is None else outputs + bias

    def _bias(self) -> Tensor | None:
        """The bias that is bound now, if there is one."""
        if len(self._layers) == 1:
            return self._layers[0].bias
        biases: list[Tensor] = [layer.bias for layer in self._layers if layer.bias is not None]
        return torch.cat(biases) if biases else None


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows ``[first_row, end_row)`` of the weights of a group: what is packed at once."""

    linears: PackedLinears
    group: LinearGroup
    first_row: int
    end_row: int

    @property
    def size_bytes(self) -> int:
        """Bytes of the rows."""
        return (self.end_row - self.first_row) * self.group[0].in_features * self.group[0].weight.element_size()

    def pack(self) -> int:
        """Pack the rows as they are bound now; the layers use them once all are there. Returns the bytes taken."""
        before = self.linears.bytes
        weight = self.group[0].weight if len(self.group) == 1 else torch.cat([layer.weight for layer in self.group])
        self.linears.add(weight[self.first_row : self.end_row])
        return self.linears.bytes - before


def pieces(group: LinearGroup, piece_bytes: int) -> Iterator[Piece]:
    """What to pack of a group, in pieces of ``piece_bytes`` or less.

    It is computed as one if its weights make one piece, and if all layers have a bias or none has.
    """
    row_bytes = group[0].in_features * group[0].weight.element_size()
    all_rows = sum(layer.out_features for layer in group)
    if len(group) > 1 and (all_rows * row_bytes > piece_bytes or len({layer.bias is None for layer in group}) > 1):
        for layer in group:
            yield from pieces((layer,), piece_bytes)
        return
    linears, rows = PackedLinears(group), max(1, piece_bytes // row_bytes)
    for row in range(0, all_rows, rows):
        yield Piece(linears, group, row, min(row + rows, all_rows))
