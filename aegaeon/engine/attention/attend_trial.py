"""Tries an attention backend on the device, once for each kind of layer, with blocks that lie as ours do, against
gathering: what raises, or differs, cannot do it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from aegaeon.core.kv_shape import KvShape, LayerKv
from aegaeon.engine.attention.attend_gather import GatherAttention
from aegaeon.engine.attention.attention import AttentionCall
from aegaeon.engine.attention.device_attention import AttentionBackend, LayerNeeds
from aegaeon.engine.attention.kv_arena import HeadRows, KvArena
from aegaeon.engine.attention.lanes import Chunk, Lanes

_TOLERANCE = 2e-2  # of half-precision outputs of about 1
_TRIAL_DECODES = 3
_TRIAL_CHUNK = 40
_SOFT_CAP = 30.0


def trial_problem(backend: AttentionBackend, needs: LayerNeeds, device: torch.device) -> str | None:
    """Why a backend cannot do what a layer needs on this device; None if it can. Sinks are not tried."""
    trial = _Trial.of(needs, device)
    try:
        ours = backend.attend(trial.call, trial.query, trial.keys, trial.values, trial.lanes)
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    right = GatherAttention().attend(trial.call, trial.query, trial.keys, trial.values, trial.lanes)
    apart = (ours.float() - right.float()).abs().max().item()
    return None if apart <= _TOLERANCE else f"its results are off by {apart:.2g}"


@dataclass(frozen=True, slots=True)
class _Trial:
    """A small step with all that a layer needs: some decodes and a chunk, on random keys and values."""

    call: AttentionCall
    query: Tensor
    keys: HeadRows
    values: HeadRows
    lanes: Lanes

    @classmethod
    def of(cls, needs: LayerNeeds, device: torch.device) -> _Trial:
        shape = KvShape(
            (LayerKv(needs.kv_heads, needs.key_size, needs.value_size),) * 2, needs.dtype.itemsize, needs.block_tokens
        )
        generator = torch.Generator(device).manual_seed(0)
        width = -(-_TRIAL_CHUNK // needs.block_tokens) + 1
        blocks = (_TRIAL_DECODES + 1) * width
        content = torch.randn(
            blocks * shape.block_bytes // needs.dtype.itemsize, generator=generator, device=device, dtype=needs.dtype
        )
        view = KvArena(content.view(torch.uint8), shape.block_bytes).view(shape, needs.dtype)
        step = shape.block_bytes // view.unit_bytes
        tables = torch.randperm(blocks, generator=generator, device=device).view(-1, width) * step
        positions = torch.tensor([0, needs.block_tokens, 2 * needs.block_tokens - 1], device=device)
        chunk = Chunk(_TRIAL_DECODES, _TRIAL_DECODES, 1, 1 + _TRIAL_CHUNK)
        lanes = Lanes(tables, _TRIAL_DECODES, positions, (chunk,), width * needs.block_tokens)
        rows = _TRIAL_DECODES + _TRIAL_CHUNK
        query = torch.randn(
            rows, needs.query_heads, needs.key_size, generator=generator, device=device, dtype=needs.dtype
        )
        packed, softcap = query.transpose(0, 1)[None], _SOFT_CAP if needs.capped else None
        call = AttentionCall(0, packed, packed, packed, needs.key_size**-0.5, needs.reach, softcap, None, {})
        return cls(call, query, view.keys[0], view.values[0], lanes)
