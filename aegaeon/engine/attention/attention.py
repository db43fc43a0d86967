"""The seam between Transformers' attention layers and ours.

Transformers' models look their attention function up by name and pass keyword arguments they do not know through to
it. Registered under ``IMPLEMENTATION`` is a function that hands every layer's call to the object passed as ``paged``:
the step's paged attention, or the recorder that finds out what a model's layers ask for. No mask function is
registered under that name, so no masks are made: which keys a query sees is its ``Reach``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from transformers import AttentionInterface

from aegaeon.engine.errors import ModelError

IMPLEMENTATION = "aegaeon_paged"


class AttentionContractError(ModelError):
    """A layer asks its attention for something that paged attention does not do."""


@dataclass(frozen=True, slots=True)
class Reach:
    """Which keys a query sees: those from ``first(position)`` up to its own position.

    ``window_tokens``: the last so many (itself included). ``chunk_tokens``: those since the last multiple of it.
    """

    window_tokens: int | None = None
    chunk_tokens: int | None = None

    def first(self, position: int) -> int:
        """The first position seen from ``position``."""
        if self.chunk_tokens is not None:
            return position // self.chunk_tokens * self.chunk_tokens
        return max(0, position - self.window_tokens + 1) if self.window_tokens is not None else 0

    def visible(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Whether queries at positions ``[..., Q]`` see keys at ``[..., K]``: booleans ``[..., Q, K]``."""
        query, key = queries[..., :, None], keys[..., None, :]
        seen = key <= query
        if self.chunk_tokens is not None:
            seen &= key >= query // self.chunk_tokens * self.chunk_tokens
        elif self.window_tokens is not None:
            seen &= key > query - self.window_tokens
        return seen


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """What a layer asks for. T tokens: query ``[1, heads, T, key_size]``, key and value ``[1, kv_heads, T, size]``.
    ``layer`` is None where layers share their modules.

    Scores are multiplied by ``scaling``, then capped to ``softcap * tanh(score / softcap)``; ``sinks`` ``[heads]``
    take part in the softmax without a value. ``extras`` are keyword arguments with no meaning here.
    """

    layer: int | None
    query: Tensor
    key: Tensor
    value: Tensor
    scaling: float
    reach: Reach
    softcap: float | None
    sinks: Tensor | None
    extras: dict[str, Any]


class PagedAttention(Protocol):
    """What is passed to a model as ``paged``."""

    def attend(self, call: AttentionCall) -> Tensor:
        """Attention output ``[T, heads, value_size]``."""
        ...


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    paged: PagedAttention | None = None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    sliding_window: int | None = None,
    dropout: float = 0.0,
    **extras: Any,
) -> tuple[Tensor, None]:
    """Attention as Transformers calls it: query, key and value are ``[1, heads, T, size]`` or, in models with states
    that decode, ``[T, heads, 1, size]``. The output is ``[1, T, heads, value_size]``, or ``[T, 1, ...]``."""
    if paged is None:
        raise AttentionContractError("its layers do not pass keyword arguments on to attention")
    if not extras.get("is_causal", getattr(module, "is_causal", True)):
        raise AttentionContractError("its attention is not causal")
    sequences = query.shape[0]
    if sequences > 1:  # of one token each: models with states take them as rows
        query, key, value = (states.transpose(0, 2) for states in (query, key, value))
    if attention_mask is not None:
        raise AttentionContractError(f"{type(module).__name__} masks its attention in a way of its own")
    call = AttentionCall(
        layer=_layer_index(module),
        query=query,
        key=key,
        value=value,
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        reach=_reach(module, sliding_window),
        softcap=softcap,
        sinks=s_aux,
        extras=extras,
    )
    output = paged.attend(call)
    return output.reshape(sequences, -1, *output.shape[1:]), None


def _layer_index(module: nn.Module) -> int | None:
    """None of modules that several layers share."""
    index = getattr(module, "layer_idx", None)
    return index if isinstance(index, int) and index >= 0 else None


def _reach(module: nn.Module, sliding_window: int | None) -> Reach:
    """The layer's type in the configuration decides, as it does for Transformers' masks; else the argument does."""
    config = getattr(module, "config", None)
    types, index = getattr(config, "layer_types", None), _layer_index(module)
    if not types or index is None:
        return Reach(window_tokens=sliding_window)
    match types[index]:
        case "full_attention" | "hybrid":
            return Reach()
        case "chunked_attention":
            return Reach(chunk_tokens=config.attention_chunk_size)  # type: ignore[union-attr]
        case "sliding_attention" | "hybrid_sliding":
            return Reach(window_tokens=sliding_window or config.sliding_window)  # type: ignore[union-attr]
        case other:
            raise AttentionContractError(f"layer {index} is of type {other!r}, which is not supported")


def register() -> None:
    """Make the implementation known to Transformers; may be called again."""
    AttentionInterface.register(IMPLEMENTATION, attention_forward)
