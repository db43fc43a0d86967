"""The tokens of one step, packed: prefill chunks and decodes of several sequences, one after the other, flat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aegaeon.engine.attention.sequence_slice import SequenceSlice


@dataclass(frozen=True, slots=True)
class Lane:
    """A slice's place in the batch: its tokens are rows ``first_row``, ``first_row + 1``, ..."""

    first_row: int
    start: int
    end: int
    blocks: Sequence[int]

    @property
    def tokens(self) -> int:
        """How many tokens it feeds."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class StepBatch:
    """A packed batch of T tokens.

    ``token_ids`` and ``positions`` are ``[1, T]``; ``token_blocks`` (byte offsets) and ``token_slots`` (places within
    the block), both ``[T]``, say where each token's KV goes. ``logit_rows``: the rows whose logits are wanted, in the
    order of the slices. ``fresh_blocks``: blocks that get their first token in this step and are not filled by it.
    """

    lanes: tuple[Lane, ...]
    token_ids: Tensor
    positions: Tensor
    token_blocks: Tensor
    token_slots: Tensor
    logit_rows: Tensor
    fresh_blocks: tuple[int, ...]

    @classmethod
    def pack(cls, slices: Sequence[SequenceSlice], block_tokens: int) -> StepBatch:
        """Lay slices out, decodes first and by context length, so that alike ones are neighbours.

        Raises ``ValueError`` if there are none, or if a block table is too short.
        """
        if not slices:
            raise ValueError("a step needs at least one slice")
        order = sorted(range(len(slices)), key=lambda i: (len(slices[i].token_ids) > 1, slices[i].end))
        lanes: list[Lane] = []
        token_ids: list[int] = []
        positions: list[int] = []
        last_rows: dict[int, int] = {}
        for i in order:
            piece = slices[i]
            if len(piece.blocks) * block_tokens < piece.end:
                raise ValueError(
                    f"{len(piece.blocks)} blocks of {block_tokens} tokens do not hold positions up to {piece.end - 1}"
                )
            lanes.append(Lane(len(token_ids), piece.start, piece.end, piece.blocks))
            token_ids.extend(piece.token_ids)
            positions.extend(range(piece.start, piece.end))
            last_rows[i] = len(token_ids) - 1
        flat_positions = torch.tensor(positions)
        return cls(
            lanes=tuple(lanes),
            token_ids=torch.tensor([token_ids]),
            positions=flat_positions[None],
            token_blocks=torch.tensor([lane.blocks[p // block_tokens] for lane in lanes for p in _span(lane)]),
            token_slots=flat_positions % block_tokens,
            logit_rows=torch.tensor([last_rows[i] for i, s in enumerate(slices) if s.wants_logits], dtype=torch.long),
            fresh_blocks=tuple(block for lane in lanes for block in _fresh_blocks(lane, block_tokens)),
        )


def _span(lane: Lane) -> range:
    return range(lane.start, lane.end)


def _fresh_blocks(lane: Lane, block_tokens: int) -> Sequence[int]:
    """The block of the last token, if the lane's tokens are its first and leave room in it."""
    last = lane.end // block_tokens
    begins_here = lane.start <= last * block_tokens < lane.end
    return lane.blocks[last : last + 1] if begins_here else ()
