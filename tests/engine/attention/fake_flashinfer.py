"""FlashInfer's two wrappers in plain arithmetic, on the tensors that they would get; with the checks that it makes."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

calls: list[str] = []


class _Wrapper:
    def __init__(self, workspace: Tensor, layout: str, **buffers: Any) -> None:
        assert (workspace.dtype, layout) == (torch.uint8, "HND")
        self._buffers = {name: buffer for name, buffer in buffers.items() if isinstance(buffer, Tensor)}
        calls.append(f"made {type(self).__name__}")

    def _note(
        self,
        queries: Tensor,
        indptr: Tensor,
        indices: Tensor,
        last: Tensor,
        heads: int,
        kv_heads: int,
        size: int,
        page: int,
    ) -> None:
        for tensor in (queries, indptr, indices, last):
            assert tensor.dtype == torch.int32
        assert int(indptr[-1]) == len(indices)
        assert bool((last >= 1).all())
        assert int(last.max()) <= page
        if self._buffers:  # what a graph reads stays where it is
            assert self._buffers["paged_kv_indices_buffer"].numel() >= len(indices)
            assert self._buffers["paged_kv_indptr_buffer"].shape == indptr.shape
        self._queries, self._indptr, self._indices, self._last = queries, indptr, indices, last
        self._heads, self._kv_heads, self._size, self._page = heads, kv_heads, size, page
        calls.append("plan")

    def _run(self, query: Tensor, cache: tuple[Tensor, Tensor]) -> Tensor:
        assert query.is_contiguous()
        assert cache[0].stride() == cache[1].stride()
        assert cache[0].shape[1:] == (self._kv_heads, self._page, self._size)
        calls.append("run")
        lanes = range(len(self._indptr) - 1)
        return torch.cat([self._lane(query, cache, lane) for lane in lanes])

    def _lane(self, query: Tensor, cache: tuple[Tensor, Tensor], lane: int) -> Tensor:
        pages = self._indices[self._indptr[lane] : self._indptr[lane + 1]].tolist()
        length = (len(pages) - 1) * self._page + int(self._last[lane])
        group = self._heads // self._kv_heads
        keys, values = (
            torch.cat([part[page] for page in pages], 1)[:, :length].repeat_interleave(group, 0).double()
            for part in cache
        )
        rows = query[self._queries[lane] : self._queries[lane + 1]].transpose(0, 1).double()
        scores = rows @ keys.transpose(1, 2) * self._options["sm_scale"]
        cap = self._options["logits_soft_cap"]
        scores = scores if cap is None else cap * torch.tanh(scores / cap)
        at = torch.arange(length - rows.shape[1], length)[:, None]
        seen = torch.arange(length) <= at
        if self._options["window_left"] >= 0:
            seen &= torch.arange(length) >= at - self._options["window_left"]
        weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        return (weights @ values).transpose(0, 1).to(query.dtype)


class BatchDecodeWithPagedKVCacheWrapper(_Wrapper):
    def plan(self, indptr: Tensor, indices: Tensor, last_page_len: Tensor, *sizes: int, **options: Any) -> None:
        self._options = options
        self._note(torch.arange(len(indptr), dtype=torch.int32), indptr, indices, last_page_len, *sizes)

    def run(self, query: Tensor, cache: tuple[Tensor, Tensor]) -> Tensor:
        return self._run(query, cache)


class BatchPrefillWithPagedKVCacheWrapper(_Wrapper):
    def plan(
        self, queries: Tensor, indptr: Tensor, indices: Tensor, last: Tensor, *sizes: int, causal: bool, **options: Any
    ) -> None:
        assert causal
        self._options = options
        self._note(queries, indptr, indices, last, *sizes)

    def run(self, query: Tensor, cache: tuple[Tensor, Tensor]) -> Tensor:
        return self._run(query, cache)


def fake_flashinfer() -> ModuleType:
    """A module of that name."""
    calls.clear()
    module = ModuleType("flashinfer")
    module.BatchDecodeWithPagedKVCacheWrapper = BatchDecodeWithPagedKVCacheWrapper  # type: ignore[attr-defined]
    module.BatchPrefillWithPagedKVCacheWrapper = BatchPrefillWithPagedKVCacheWrapper  # type: ignore[attr-defined]
    return module
