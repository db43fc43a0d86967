"""Steps of one model on a device: as ``runner``, with attention and graphs as a GPU wants them.

A step of decodes only is padded to a power of two of rows and runs on buffers that stay where they are. Once such a
size has been used a few times it is waiting to be captured; whoever has time calls ``prepare_one``, which captures it
and keeps the graph if it pays. Graphs stay valid when a model goes and comes back, because its weights come back to the
same addresses; if they ever do not, its graphs are forgotten.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aegaeon.core.kv_shape import KvShape
from aegaeon.device.common.graphs import GraphCapture
from aegaeon.engine.attention.batch import StepBatch
from aegaeon.engine.attention.device_attention import DeviceAttention
from aegaeon.engine.attention.kv_arena import KvArena, KvView
from aegaeon.engine.attention.sequence_slice import SequenceSlice
from aegaeon.engine.errors import ModelError
from aegaeon.engine.step.decode_buffers import DecodeBuffers
from aegaeon.engine.step.device_step import DeviceBatch, DeviceStep, clear_fresh
from aegaeon.engine.step.graph_shelf import GraphShelf
from aegaeon.engine.step.model import Model
from aegaeon.engine.step.state_step import StatePasses

logger = logging.getLogger(__name__)

_LEAST_WIDTH = 64  # blocks of a table


@dataclass(frozen=True, slots=True)
class GraphLimits:
    """When graphs are worth it. ``uses``: steps of a size before it is captured; ``least_saving``: the share of an
    eager step's time that a replay must save; ``most_rows``: larger steps stay eager."""

    uses: int = 3
    least_saving: float = 0.05
    most_rows: int = 256


@dataclass(slots=True)
class _Size:
    """Decode steps of one size: their buffers, how often they ran, and whether a graph was tried."""

    buffers: DecodeBuffers
    uses: int = 0
    tried: bool = False


class DeviceRunner:
    """Runs a model that is bound to its weights on a device. ``attention``, ``capture`` and ``shelf`` are shared by a
    process' runners; without ``capture`` every step is eager."""

    def __init__(
        self,
        model: Model,
        kv_shape: KvShape,
        attention: DeviceAttention,
        max_context_tokens: int,
        capture: GraphCapture | None = None,
        shelf: GraphShelf | None = None,
        limits: GraphLimits | None = None,
    ) -> None:
        self.model = model
        self.kv_shape = kv_shape
        self._states = StatePasses(model, kv_shape) if kv_shape.states else None
        self._attention = attention
        self._capture = capture
        self._shelf = GraphShelf(0) if shelf is None else shelf
        self._limits = limits or GraphLimits()
        self._max_width = kv_shape.blocks_for(max_context_tokens)
        self._arena: KvArena | None = None
        self._sizes: dict[tuple[int, int], _Size] = {}
        self._addresses: tuple[int, ...] = ()
        self.replays = 0

    @torch.inference_mode()
    def step(self, slices: Sequence[SequenceSlice], arena: KvArena) -> Tensor:
        """The logits, as from ``Runner.step``; those of a step of decodes hold until the next step."""
        if self._states is not None:
            return self._states.step(slices, lambda some: self._feed(some, arena))
        return self._feed(slices, arena)

    def _feed(self, slices: Sequence[SequenceSlice], arena: KvArena) -> Tensor:
        if all(self._decodes(piece) for piece in slices):
            return self._decode(slices, arena)
        view = arena.view(self.kv_shape, self.model.dtype)
        batch = StepBatch.pack(slices, self.kv_shape.block_tokens)
        if self._attention.reads_padding:
            clear_fresh(view, batch.fresh_blocks)
        return self._run(DeviceBatch.of(batch, view, arena.device), view)

    def _decodes(self, piece: SequenceSlice) -> bool:
        return piece.wants_logits and len(piece.token_ids) == 1 and (self._states is None or piece.goes_on)

    @torch.inference_mode()
    def prepare_one(self) -> bool:
        """Capture one size that is waiting for it; False if none is. The model must be bound."""
        waiting = [(key, size) for key, size in self._sizes.items() if self._is_waiting(key, size)]
        if self._capture is None or self._arena is None or not self.model.bound or not waiting:
            return False
        key, size = max(waiting, key=lambda entry: entry[1].uses)
        size.tried = True
        self._try_graph(key, size.buffers, self._arena, self._capture)
        return True

    @property
    def graphs(self) -> tuple[tuple[int, int], ...]:
        """Rows and table widths of the sizes that have a graph."""
        return tuple(key for key in self._sizes if (self, *key) in self._shelf)

    def _decode(self, slices: Sequence[SequenceSlice], arena: KvArena) -> Tensor:
        self._settle(arena)
        view = arena.view(self.kv_shape, self.model.dtype)
        key = self._key(slices)
        if key not in self._sizes:
            self._sizes[key] = _Size(DecodeBuffers(*key, view, arena.trash, arena.device))
        size = self._sizes[key]
        size.uses += 1
        if self._attention.reads_padding:
            clear_fresh(view, _fresh_blocks(slices, self.kv_shape.block_tokens))
        size.buffers.fill(slices)
        self._attention.prepare(size.buffers.batch.lanes)
        graph = self._shelf.get((self, *key))
        if graph is None:
            return self._run(size.buffers.batch, view)[: len(slices)]
        graph.replay()
        self.replays += 1
        return graph.output[: len(slices)]

    def _key(self, slices: Sequence[SequenceSlice]) -> tuple[int, int]:
        """Rows and table width of a step: powers of two, so that few sizes serve all."""
        rows = _power_of_two(len(slices))
        if not self._attention.reads_padding:
            return rows, self._max_width
        needed = max(piece.start for piece in slices) // self.kv_shape.block_tokens + 1
        return rows, max(_LEAST_WIDTH, _power_of_two(needed))

    def _run(self, batch: DeviceBatch, view: KvView) -> Tensor:
        paged = DeviceStep(batch, view, self._attention)
        if self._states is None or view.states is None or batch.places is None:
            logits = self.model.forward(batch.token_ids, batch.positions, batch.logit_rows, paged)
        else:
            logits = self._states.forward(batch, paged, view.states, batch.places)
        if paged.layers_done != len(self.kv_shape.layers):
            told = f"{paged.layers_done} layers attended, {len(self.kv_shape.layers)} should"
            raise ModelError(f"{self.model.path}: {told}")
        return logits

    def _settle(self, arena: KvArena) -> None:
        """Forget what was captured for other addresses."""
        if arena is not self._arena or self.model.addresses != self._addresses:
            if self._arena is not None:
                logger.info("%s: its memory moved, graphs are captured anew", self.model.path)
            self._shelf.drop(self)
            self._sizes.clear()
            self._arena, self._addresses = arena, self.model.addresses

    def _is_waiting(self, key: tuple[int, int], size: _Size) -> bool:
        return not size.tried and size.uses >= self._limits.uses and key[0] <= self._limits.most_rows

    def _try_graph(self, key: tuple[int, int], buffers: DecodeBuffers, arena: KvArena, capture: GraphCapture) -> None:
        """Time padding through the model, eagerly and as a graph; keep the graph if it pays."""
        view = arena.view(self.kv_shape, self.model.dtype)

        def work() -> Tensor:
            return self._run(buffers.batch, view)

        buffers.fill(())
        self._attention.prepare(buffers.batch.lanes)
        work()
        eager_s = capture.measure_s(work)
        graph = capture.capture(work)
        graph.replay()
        replay_s = capture.measure_s(graph.replay)
        pays = replay_s <= (1.0 - self._limits.least_saving) * eager_s
        kept = pays and self._shelf.put((self, *key), graph)
        logger.info(
            "%s, decode of %d rows: eager %.2f ms, graph %.2f ms, %.1f MiB: %s",
            self.model.path,
            key[0],
            eager_s * 1e3,
            replay_s * 1e3,
            graph.size_bytes / 2**20,
            "kept" if kept else "stays eager",
        )


def _fresh_blocks(slices: Sequence[SequenceSlice], block_tokens: int) -> list[int]:
    """The blocks of which a step of single tokens writes the first slot."""
    return [piece.blocks[piece.start // block_tokens] for piece in slices if piece.start % block_tokens == 0]


def _power_of_two(count: int) -> int:
    """The least that is not smaller."""
    return 1 << max(0, count - 1).bit_length()
