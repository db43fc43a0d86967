"""Finding out what a model's layers ask of attention, without weights: two tokens through the skeleton.

On the meta device a forward pass has shapes and no arithmetic, so it takes milliseconds. A recorder in the place of
paged attention sees each layer's call; a probe in the place of the KV cache sees what the model would keep from token
to token; a mask that is only a note of how it would be computed shows which keys a layer wants its queries to see; and
a watch sees whether positions matter. A model runs right on paged attention if each layer attends once, through the
interface, in a way that ``AttentionCall`` describes, and keeps nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from reprlib import repr as shown
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import DynamicCache, DynamicSlidingWindowLayer

from aegaeon.core.kv_shape import LayerKv
from aegaeon.engine.attention.attention import AttentionCall, AttentionContractError, Reach, attention_forward

IMPLEMENTATION = "aegaeon_dry_run"

_TOKENS = 2

_MOST_WINDOW_TOKENS = 1 << 20
"""Four times the largest that is known; each layer's mask is looked at for twice as many keys."""

_HARMLESS_EXTRAS = {"position_ids", "cache_position"}
"""Tensors that layers hand to attention for other implementations."""

_KEY_VALUE_CACHES = {"DynamicLayer", "DynamicSlidingWindowLayer", "DummyLayer"}
"""Transformers' caches for layers that keep keys and values only, or none: those that attend to another layer's."""


def register() -> None:
    """Make the recording attention and its notes of masks known to Transformers; may be called again."""
    AttentionInterface.register(IMPLEMENTATION, _recording_forward)
    AttentionMaskInterface.register(IMPLEMENTATION, _MaskNote)


def attention_layers(model: nn.Module) -> tuple[LayerKv, ...]:
    """What each layer caches, of a skeleton built with ``IMPLEMENTATION``.

    Raises ``AttentionContractError`` if paged attention cannot run it.
    """
    config: Any = model.config
    probe = _cache_probe(config)
    recorder, watch = _Recorder(probe.windowed_layers), _PositionWatch()
    token_ids = torch.zeros((1, _TOKENS), dtype=torch.long, device="meta")
    positions = torch.zeros((1, _TOKENS), dtype=torch.long, device="meta")
    watch.positions = positions
    try:
        with torch.inference_mode(), watch:
            output = model(
                input_ids=token_ids,
                position_ids=positions,
                past_key_values=probe,
                use_cache=True,
                logits_to_keep=torch.zeros(1, dtype=torch.long, device="meta"),
                paged=recorder,
            )
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError) as error:
        message = str(error).strip().splitlines() or [type(error).__name__]
        raise AttentionContractError(f"a forward pass of its modules fails: {message[0]}") from error
    if not watch.seen and recorder.layers:
        raise AttentionContractError("it ignores the positions it is given")
    if output.logits.dim() != 3:
        raise AttentionContractError(f"its logits have the shape {list(output.logits.shape)}")
    return recorder.result(config.get_text_config().num_hidden_layers)


def _cache_probe(config: Any) -> _CacheProbe:
    try:
        probe = _CacheProbe(config=config)
    except (RuntimeError, TypeError, ValueError) as error:
        raise AttentionContractError(f"no cache can be made for its layers: {error}") from error
    probe.check_layers()
    return probe


class _CacheProbe(DynamicCache):  # type: ignore[misc]
    """A cache that stays empty, and does not take anything but keys and values."""

    def check_layers(self) -> None:
        """Raises ``AttentionContractError`` where Transformers would use caches of other kinds."""
        kinds = {type(layer).__name__ for layer in self.layers} - _KEY_VALUE_CACHES
        if kinds:
            raise AttentionContractError(f"it keeps more than attention's keys and values ({', '.join(sorted(kinds))})")

    @property
    def windowed_layers(self) -> set[int]:
        """Layers whose cache forgets."""
        return {index for index, layer in enumerate(self.layers) if type(layer) is DynamicSlidingWindowLayer}

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return key_states, value_states

    def get_seq_length(self, *_: Any, **__: Any) -> int:
        return 0

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise AttentionContractError("it keeps recurrent or convolution state beside keys and values")

    update_conv_state = update_recurrent_state = update_indexer = get_conv_state = get_recurrent_state = _refuse


class _MaskNote:
    """A mask that was not computed; made by the model's mask functions, handed through to each layer's attention."""

    def __init__(self, *, mask_function: Callable[..., Any], **_: Any) -> None:
        self._mask_function = mask_function

    def __getattr__(self, name: str) -> Any:
        raise AttentionContractError("it computes with its attention masks")

    def sees(self, position: int, keys: Tensor) -> Tensor:
        """Which keys the query at a position sees. What the function depends on (left padding) has no data: zero."""
        zero = torch.zeros((), dtype=torch.long)
        with _MetaAsZeros():
            return torch.as_tensor(self._mask_function(zero, zero, torch.tensor(position), keys)).expand(len(keys))


class _MetaAsZeros(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lets tensors without data take part in computations, as zeros."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        given = [torch.zeros(arg.shape, dtype=arg.dtype) if _is_meta(arg) else arg for arg in args]
        return func(*given, **(kwargs or {}))


def _is_meta(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_meta


def _recording_forward(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    noted = isinstance(attention_mask, _MaskNote)
    recorder = kwargs.get("paged")
    if isinstance(recorder, _Recorder):
        recorder.mask = attention_mask if noted else None
    return attention_forward(module, query, key, value, None if noted else attention_mask, **kwargs)


def _same_reach(reach: Reach, mask: _MaskNote | None) -> bool:
    """Whether a mask lets queries see what ``reach`` says, for some positions well into the context."""
    if mask is None:
        return reach == Reach()
    width = 2 * max(reach.window_tokens or 0, reach.chunk_tokens or 0, 32)
    keys = torch.arange(width + 1)
    return all(
        torch.equal(mask.sees(position, keys), reach.visible(torch.tensor([position]), keys)[0])
        for position in (0, 1, width // 2, width - 1, width)
    )


class _Recorder:
    """Takes the place of paged attention: notes what each layer caches, gives back a tensor of the right shape."""

    def __init__(self, windowed_layers: set[int]) -> None:
        self._windowed_layers = windowed_layers
        self.layers: dict[int, LayerKv] = {}
        self.mask: _MaskNote | None = None

    def attend(self, call: AttentionCall) -> Tensor:
        if call.layer in self.layers:
            raise AttentionContractError(f"layer {call.layer} attends more than once")
        self._check(call)
        heads, tokens = call.query.shape[1:3]
        self.layers[call.layer] = LayerKv(call.key.shape[1], call.key.shape[3], call.value.shape[3])
        return call.value.new_empty(tokens, heads, call.value.shape[3])

    def _check(self, call: AttentionCall) -> None:
        shapes = [tuple(states.shape) for states in (call.query, call.key, call.value)]
        if any(len(shape) != 4 or shape[0] != 1 or shape[2] != _TOKENS for shape in shapes):
            raise AttentionContractError(f"layer {call.layer} attends to something other than its new tokens")
        (_, heads, _, query_size), (_, kv_heads, _, key_size), (_, value_heads, _, _) = shapes
        if heads % kv_heads or kv_heads != value_heads or query_size != key_size:
            raise AttentionContractError(f"the heads of layer {call.layer} do not fit each other: {shapes}")
        reach_tokens = call.reach.window_tokens if call.reach.chunk_tokens is None else call.reach.chunk_tokens
        if reach_tokens is not None and not 1 <= reach_tokens <= _MOST_WINDOW_TOKENS:
            told = f"{shown(reach_tokens)} tokens, supported are 1 to {_MOST_WINDOW_TOKENS}"
            raise AttentionContractError(f"layer {call.layer} has an attention window of {told}")
        forgets = call.layer in self._windowed_layers
        if not _same_reach(call.reach, self.mask) or (forgets and call.reach == Reach()):
            raise AttentionContractError(f"layer {call.layer} masks its attention in a way that is not supported")
        unknown = [
            name for name, value in call.extras.items() if isinstance(value, Tensor) and name not in _HARMLESS_EXTRAS
        ]
        if unknown:
            raise AttentionContractError(f"layer {call.layer} attends with {unknown[0]!r}, which is not supported")

    def result(self, layers: int) -> tuple[LayerKv, ...]:
        """What layers 0, 1, ... cache; all of them must have attended."""
        if not self.layers:
            raise AttentionContractError("its layers do not use Transformers' attention interface, whatever they say")
        if sorted(self.layers) != list(range(layers)):
            silent = sorted(set(range(layers)) - set(self.layers))
            raise AttentionContractError(
                f"layers {silent or sorted(self.layers)} of {layers} do not attend through the interface"
            )
        return tuple(self.layers[index] for index in range(layers))


class _PositionWatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees whether any operation reads the position tensor."""

    positions: Tensor

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        self.seen = self.seen or any(arg is self.positions for arg in (*args, *named.values()))
        return func(*args, **named)
