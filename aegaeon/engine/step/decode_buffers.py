"""The inputs of a decode step at addresses that stay, for as many rows as a graph was captured with.

Rows that no sequence takes are padding: they feed token 0 at position 0 of a block that belongs to nobody (the trash
block), and what comes out of them is never looked at.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from aegaeon.engine.attention.kv_arena import KvView
from aegaeon.engine.attention.lanes import Lanes
from aegaeon.engine.attention.sequence_slice import SequenceSlice
from aegaeon.engine.step.device_step import DeviceBatch
from aegaeon.engine.step.state_step import StatePlaces

_COLUMNS = 6  # before the block table: token, position, unit, slot; unit of the token before, tokens with this one


class DecodeBuffers:
    """``rows`` rows with block tables of ``width`` blocks. ``trash``: byte offset of the block that takes the padding.

    ``batch`` is the step; ``fill`` changes what its tensors hold, and nothing else.
    """

    def __init__(self, rows: int, width: int, view: KvView, trash: int, device: torch.device) -> None:
        self.rows = rows
        self.width = width
        self._block_tokens = view.shape.block_tokens
        self._unit_bytes = view.unit_bytes
        self._trash = trash // view.unit_bytes
        self._host = np.zeros((rows * (_COLUMNS + width),), dtype=np.int64)
        self._inputs = self._host[: rows * _COLUMNS].reshape(_COLUMNS, rows)
        self._tables = self._host[rows * _COLUMNS :].reshape(rows, width)
        self._filled = rows
        self._device = torch.zeros(len(self._host), dtype=torch.int64, device=device)
        token_ids, positions, units, slots, before, tokens = self._device[: rows * _COLUMNS].view(_COLUMNS, rows)
        lanes = Lanes(
            self._device[rows * _COLUMNS :].view(rows, width), rows, positions, (), width * self._block_tokens
        )
        logit_rows = torch.arange(rows, device=device)
        places = StatePlaces(before, units, tokens)
        self.batch = DeviceBatch(token_ids[None], positions[None], units, slots, logit_rows, lanes, places)
        self.fill(())

    def fill(self, slices: Sequence[SequenceSlice]) -> None:
        """Take at most ``rows`` slices of one token each; returns when the host's copy may change again."""
        inputs, block_tokens = self._inputs, self._block_tokens
        for row, piece in enumerate(slices):
            block, slot = divmod(piece.start, block_tokens)
            seen = np.asarray(piece.blocks[: block + 1]) // self._unit_bytes
            self._tables[row, : block + 1] = seen
            self._tables[row, block + 1 :] = seen[-1]
            before = seen[max(0, piece.start - 1) // block_tokens]
            inputs[:, row] = (piece.token_ids[0], piece.start, seen[-1], slot, before, piece.end)
        self._pad(len(slices))
        # From memory that is not pinned: the driver has taken the bytes when this returns.
        self._device.copy_(torch.from_numpy(self._host))

    def _pad(self, first: int) -> None:
        """Rows that were padding stay so."""
        self._inputs[:, first : self._filled] = ((0,), (0,), (self._trash,), (0,), (self._trash,), (0,))
        self._tables[first : self._filled] = self._trash
        self._filled = first
