"""Attention by FlashInfer's kernels, where that is installed (``pip install 'aegaeon[flashinfer]'``).

Its pages are ours: head by head, and anywhere. Before a step it wants to be told which pages there are and how full the
last ones are (``plan``), on the host; that is done once for each kind of layer, and for steps that are captured
outside of the graph, into tensors that stay where they are.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aegaeon.engine.attention.attend_trial import trial_problem
from aegaeon.engine.attention.attention import AttentionCall
from aegaeon.engine.attention.device_attention import LayerNeeds
from aegaeon.engine.attention.kv_arena import HeadRows
from aegaeon.engine.attention.lanes import Lanes

_WORKSPACE_BYTES = 128 << 20
_HEAD_SIZES = (64, 128, 256)
_LAYOUT = "HND"  # heads, tokens, elements: how a block of ours lies


class FlashInferAttention:
    """An ``AttentionBackend`` for tensors on ``device``."""

    name = "flashinfer"
    reads_padding = False

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._trials: dict[LayerNeeds, str | None] = {}
        self._workspace: Tensor | None = None

    def refuses(self, needs: LayerNeeds) -> str | None:
        if needs not in self._trials:
            self._trials[needs] = _unfit(needs) or trial_problem(self, needs, self._device)
        return self._trials[needs]

    def prepare(self, lanes: Lanes) -> None:
        for plan in lanes.kept.values():
            if isinstance(plan, _Plan):
                plan.renew(lanes)

    def attend(self, call: AttentionCall, query: Tensor, keys: HeadRows, values: HeadRows, lanes: Lanes) -> Tensor:
        layer = _Layer(LayerNeeds.of(call, keys, values), call.scaling, call.softcap)
        if layer not in lanes.kept:
            lanes.kept[layer] = self._plan(layer, lanes)
        plan = lanes.kept[layer]
        assert isinstance(plan, _Plan)
        return plan.run(query.contiguous(), _pages(keys), _pages(values))

    def _plan(self, layer: _Layer, lanes: Lanes) -> _Plan:
        if self._workspace is None:
            self._workspace = torch.zeros(_WORKSPACE_BYTES, dtype=torch.uint8, device=self._device)
        plan = _Plan.of(layer, lanes, self._workspace)
        plan.renew(lanes)
        return plan


@dataclass(frozen=True, slots=True)
class _Layer:
    """What plans differ by."""

    needs: LayerNeeds
    scaling: float
    softcap: float | None

    @property
    def options(self) -> dict[str, Any]:
        """FlashInfer's, for decodes and chunks."""
        window = self.needs.reach.window_tokens
        return {
            "sm_scale": self.scaling,
            "window_left": -1 if window is None else window - 1,
            "logits_soft_cap": self.softcap,
            "q_data_type": self.needs.dtype,
            "kv_data_type": self.needs.dtype,
        }


@dataclass(frozen=True, slots=True)
class PageTable:
    """Pages of lanes as FlashInfer wants them: those of lane i are ``indices[indptr[i] : indptr[i + 1]]``, of which the
    last holds ``last_page_len[i]`` tokens. All int32."""

    indptr: Tensor
    indices: Tensor
    last_page_len: Tensor

    @classmethod
    def of(cls, tables: Tensor, lengths: Tensor, block_tokens: int) -> PageTable:
        """The table of blocks ``[lanes, width]`` and contexts of ``lengths`` ``[lanes]`` tokens, at least one each."""
        pages = (lengths + block_tokens - 1) // block_tokens
        used = torch.arange(tables.shape[1], device=tables.device) < pages[:, None]
        indptr = torch.cat((pages.new_zeros(1), pages.cumsum(0)))
        return cls(indptr.int(), tables[used].int(), ((lengths - 1) % block_tokens + 1).int())


@dataclass(frozen=True, slots=True)
class _Plan:
    """FlashInfer's wrappers for the decodes and for the chunks of some lanes; None where there are none."""

    layer: _Layer
    decode: Any
    chunks: Any
    rows: int
    """Of decodes: those come first."""

    @classmethod
    def of(cls, layer: _Layer, lanes: Lanes, workspace: Tensor) -> _Plan:
        api, decode, chunks = _api(), None, None
        if lanes.decodes:
            count, device = lanes.decodes, workspace.device
            decode = api.BatchDecodeWithPagedKVCacheWrapper(
                workspace,
                _LAYOUT,
                use_cuda_graph=not lanes.chunks,  # steps of decodes only may be captured
                paged_kv_indptr_buffer=torch.zeros(count + 1, dtype=torch.int32, device=device),
                paged_kv_indices_buffer=torch.zeros(lanes.tables.numel(), dtype=torch.int32, device=device),
                paged_kv_last_page_len_buffer=torch.zeros(count, dtype=torch.int32, device=device),
            )
        if lanes.chunks:
            chunks = api.BatchPrefillWithPagedKVCacheWrapper(workspace, _LAYOUT)
        return cls(layer, decode, chunks, lanes.decodes)

    def renew(self, lanes: Lanes) -> None:
        """Tell FlashInfer what the lanes hold now."""
        needs, heads = self.layer.needs, (self.layer.needs.query_heads, self.layer.needs.kv_heads)
        sizes = (*heads, needs.key_size, needs.block_tokens)
        if self.decode is not None:
            table = PageTable.of(lanes.tables[: self.rows], lanes.decode_positions + 1, needs.block_tokens)
            self.decode.plan(table.indptr, table.indices, table.last_page_len, *sizes, **self.layer.options)
        if self.chunks is not None:
            device = lanes.tables.device
            lengths = torch.tensor([chunk.end for chunk in lanes.chunks], device=device)
            numbers = torch.tensor([chunk.lane for chunk in lanes.chunks], device=device)
            table = PageTable.of(lanes.tables[numbers], lengths, needs.block_tokens)
            ends = [chunk.first_row + chunk.tokens - self.rows for chunk in lanes.chunks]
            queries = torch.tensor([0, *ends], dtype=torch.int32, device=device)
            self.chunks.plan(
                queries, table.indptr, table.indices, table.last_page_len, *sizes, causal=True, **self.layer.options
            )

    def run(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attend; decodes are the first rows, chunks follow each other."""
        parts = []
        if self.decode is not None:
            parts.append(self.decode.run(query[: self.rows], (keys, values)))
        if self.chunks is not None:
            parts.append(self.chunks.run(query[self.rows :], (keys, values)))
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _unfit(needs: LayerNeeds) -> str | None:
    """What these kernels cannot do at all, or not as our blocks lie."""
    try:
        _api()
    except (ImportError, OSError, RuntimeError) as error:  # the last two where there is no CUDA
        return f"cannot be imported ({str(error).splitlines()[0]})"
    if needs.sinks or needs.reach.chunk_tokens is not None:
        return "no sinks or chunked attention"
    if needs.key_size != needs.value_size or needs.key_size not in _HEAD_SIZES:
        return f"heads of {' or '.join(map(str, _HEAD_SIZES))}, keys and values alike, only"
    if needs.dtype not in (torch.bfloat16, torch.float16):
        return f"no {str(needs.dtype).removeprefix('torch.')}"
    return None


def _api() -> Any:
    return importlib.import_module("flashinfer")


def _pages(rows: HeadRows) -> Tensor:
    """Every place where a block may begin as a page ``[pages, heads, block_tokens, size]``; they overlap."""
    elements = rows.elements
    room = rows.heads * rows.block_tokens * rows.size
    begins = (elements.shape[0] - 1) * rows.unit + rows.size - room
    shape = (max(0, begins // rows.unit + 1), rows.heads, rows.block_tokens, rows.size)
    strides = (rows.unit, rows.block_tokens * rows.size, rows.size, 1)
    return elements.as_strided(shape, strides, elements.storage_offset())
