"""The tokens of one step on a device, for attention there: lanes, their block tables, and tiles of query rows.

Decoding lanes come first, each with one row; then come the lanes of prompt chunks. Everything that depends on values is
a tensor, so that a step of decodes only can be captured and repeated with other values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from aegaeon.engine.attention.batch import Lane


@dataclass(frozen=True, slots=True)
class Tiles:
    """Query rows attended by one program each; integers ``[tiles]``.

    Tile ``i`` is ``tokens[i]`` (at most ``most_tokens``) consecutive rows from ``rows[i]`` on, of lane ``lanes[i]``, at
    positions from ``positions[i]`` on.
    """

    lanes: Tensor
    rows: Tensor
    tokens: Tensor
    positions: Tensor
    most_tokens: int

    @property
    def count(self) -> int:
        """How many there are."""
        return self.lanes.shape[0]


@dataclass(frozen=True, slots=True)
class Chunk:
    """A lane of a prompt's chunk, as the host knows it: rows of the batch, and its place among the tables."""

    lane: int
    first_row: int
    start: int
    end: int

    @property
    def tokens(self) -> int:
        """How many tokens it feeds."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Lanes:
    """``tables`` ``[lanes, width]``: block tables in units, padded with anything that may be read.

    ``decodes``: how many lanes decode; ``decode_positions`` ``[decodes]`` are theirs. ``longest_tokens``: no lane's
    context is longer. ``kept``: what a backend has made for these lanes, under a key of its own.
    """

    tables: Tensor
    decodes: int
    decode_positions: Tensor
    chunks: tuple[Chunk, ...]
    longest_tokens: int
    kept: dict[object, object] = field(default_factory=dict)
    _tiles: dict[int, Tiles] = field(default_factory=dict)  # they live as long as this: a captured graph reads them

    def decode_tiles(self) -> Tiles:
        """A tile for each lane that decodes."""
        if 0 not in self._tiles:
            numbers = torch.arange(self.decodes, device=self.tables.device)
            self._tiles[0] = Tiles(numbers, numbers, torch.ones_like(numbers), self.decode_positions, 1)
        return self._tiles[0]

    def chunk_tiles(self, most_tokens: int) -> Tiles:
        """Tiles of at most so many rows for the prompt chunks."""
        if most_tokens not in self._tiles:
            columns = torch.tensor(list(_tile_rows(self.chunks, most_tokens))).T.contiguous().to(self.tables.device)
            self._tiles[most_tokens] = Tiles(columns[0], columns[1], columns[2], columns[3], most_tokens)
        return self._tiles[most_tokens]


def chunks_of(lanes: Sequence[Lane]) -> tuple[Chunk, ...]:
    """The lanes that feed more than one token."""
    return tuple(
        Chunk(index, lane.first_row, lane.start, lane.end) for index, lane in enumerate(lanes) if lane.tokens > 1
    )


def _tile_rows(chunks: Sequence[Chunk], most_tokens: int) -> Iterator[tuple[int, int, int, int]]:
    """Tiles of prompt chunks as (lane, first row, tokens, position). The longest contexts first: they take longest."""
    tiles = [
        (chunk.lane, chunk.first_row + first, min(most_tokens, chunk.tokens - first), chunk.start + first)
        for chunk in chunks
        for first in range(0, chunk.tokens, most_tokens)
    ]
    yield from sorted(tiles, key=lambda tile: -tile[3])
