"""Finding out what a model's layers ask of attention, without weights: two tokens through the skeleton.

On the meta device a forward pass has shapes and no arithmetic, so it takes milliseconds. A recorder in the place of
paged attention sees each layer's call; a probe in the place of the KV cache sees what the model would keep from token
to token; a mask that is only a note of how it would be computed shows which keys a layer wants its queries to see; and
a watch sees whether positions matter. A model runs right on paged attention if each layer attends once, through the
interface, in a way that ``AttentionCall`` describes, and keeps nothing else but what recurrent and convolution layers
keep in the cache that they are given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from reprlib import repr as shown
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import CacheLayerMixin, DynamicSlidingWindowLayer, LinearAttentionCacheLayerMixin

from aegaeon.core.kv_shape import LayerKv, LayerState
from aegaeon.engine.architecture.skeleton import cache_name
from aegaeon.engine.attention.attention import AttentionCall, AttentionContractError, Reach, attention_forward
from aegaeon.engine.attention.state_cache import StateCache

IMPLEMENTATION = "aegaeon_dry_run"

_TOKENS = 2

_MOST_WINDOW_TOKENS = 1 << 20
"""Four times the largest that is known; each layer's mask is looked at for twice as many keys."""

_HARMLESS_EXTRAS = {"position_ids", "cache_position"}
"""Tensors that layers hand to attention for other implementations."""

_CACHES = {
    "DynamicLayer",
    "DynamicSlidingWindowLayer",
    "DummyLayer",
    "LinearAttentionLayer",
    "LinearAttentionAndFullAttentionLayer",
    "LinearAttentionAndSlidingWindowAttentionLayer",
}
"""Transformers' caches for layers that keep keys and values, states, both, or nothing: those that attend to another
layer's keys and values, or not at all."""


def register() -> None:
    """Make the recording attention and its notes of masks known to Transformers; may be called again."""
    AttentionInterface.register(IMPLEMENTATION, _recording_forward)
    AttentionMaskInterface.register(IMPLEMENTATION, _MaskNote)


def cached_layers(model: Any) -> tuple[tuple[LayerKv, ...], tuple[LayerState, ...]]:
    """Keys and values, and states, that layers cache, of a skeleton built with ``IMPLEMENTATION``.

    Raises ``AttentionContractError`` if paged attention cannot run it.
    """
    probe = _cache_probe(model.config)
    positions = torch.zeros((1, _TOKENS), dtype=torch.long, device="meta")
    layers, seen = _run(model, probe, positions, [positions])
    states = probe.found_states()
    if not states and model._is_stateful:
        raise AttentionContractError("it keeps recurrent or convolution state in a place of its own")
    if not states and not seen[0]:  # with states, it may know the order of its tokens from them
        raise AttentionContractError("it ignores the positions it is given")
    return layers, _checked_states(model, layers, states) if states else ()


def _checked_states(model: Any, layers: tuple[LayerKv, ...], states: tuple[LayerState, ...]) -> tuple[LayerState, ...]:
    """With what becomes of them when tokens follow: one of each of several sequences, and several of one."""
    if not all(_go_on(model, layers, states, _TOKENS, 1)):
        raise AttentionContractError("it does not go on from the state that it has kept")
    resume = _go_on(model, layers, states, 1, _TOKENS)
    return tuple(replace(state, resumes=read) for state, read in zip(states, resume, strict=True))


def _go_on(
    model: Any, layers: tuple[LayerKv, ...], states: tuple[LayerState, ...], rows: int, tokens: int
) -> list[bool]:
    """Feed so many sequences that have states so many tokens each: which states are read."""
    probe = _cache_probe(model.config, states)
    values = [torch.zeros((rows, *state.shape), dtype=getattr(torch, state.dtype), device="meta") for state in states]
    probe.begin(values)
    positions = torch.zeros((rows, tokens), dtype=torch.long, device="meta")
    again, seen = _run(model, probe, positions, values)
    if again != layers or probe.found_states() != states:
        raise AttentionContractError("what it keeps changes from token to token")
    return seen


def _run(
    model: Any, probe: _CacheProbe, positions: Tensor, watched: Sequence[Tensor]
) -> tuple[tuple[LayerKv, ...], list[bool]]:
    """What layers cache, and which tensors are read."""
    recorder, watch, token_ids = _Recorder(probe), _Watch(watched), torch.zeros_like(positions)
    try:
        with torch.inference_mode(), watch:
            output = model(
                input_ids=token_ids,
                position_ids=positions,
                use_cache=True,
                logits_to_keep=torch.zeros(1, dtype=torch.long, device="meta"),
                paged=recorder,
                **{cache_name(model): probe},
            )
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError) as error:
        message = str(error).strip().splitlines() or [type(error).__name__]
        raise AttentionContractError(f"a forward pass of its modules fails: {message[0]}") from error
    layers = recorder.result()
    if output.logits.dim() != 3:
        raise AttentionContractError(f"its logits have the shape {list(output.logits.shape)}")
    return layers, watch.seen


def _cache_probe(config: Any, states: tuple[LayerState, ...] = ()) -> _CacheProbe:
    try:
        probe = _CacheProbe(config, states)
    except (RuntimeError, TypeError, ValueError, LookupError) as error:
        raise AttentionContractError(f"no cache can be made for its layers: {error}") from error
    probe.check_layers()
    return probe


class _CacheProbe(StateCache):
    """A cache that takes no keys and values, and shows which states it was given."""

    def check_layers(self) -> None:
        """Raises ``AttentionContractError`` where Transformers would use caches of other kinds."""
        kinds = {type(layer).__name__ for layer in self.layers} - _CACHES
        if kinds:
            raise AttentionContractError(f"it keeps more than keys, values and states ({', '.join(sorted(kinds))})")

    @property
    def windowed_layers(self) -> set[int]:
        """Layers whose cache forgets."""
        return {index for index, layer in enumerate(self.layers) if isinstance(layer, DynamicSlidingWindowLayer)}

    @property
    def attending_layers(self) -> list[int]:
        """Layers that are to attend: all, but for those beside layers with states that keep something else."""
        if not any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in self.layers):
            return list(range(len(self.layers)))
        return [index for index, layer in enumerate(self.layers) if isinstance(layer, CacheLayerMixin)]

    def found_states(self) -> tuple[LayerState, ...]:
        """Of every layer that keeps some; each must have been given one."""
        return tuple(
            state
            for index, layer in enumerate(self.layers)
            if isinstance(layer, LinearAttentionCacheLayerMixin)
            for state in _layer_states(index, layer)
        )

    def get_seq_length(self, *_: Any, **__: Any) -> int:
        return 0  # masks ask for it; none is computed when the model runs

    def update_conv_state(self, conv_states: Tensor, layer_idx: int, *more: Any, **named: Any) -> Tensor:
        self._require_states(layer_idx)
        states: Tensor = super().update_conv_state(conv_states, layer_idx, *more, **named)
        return states

    def update_recurrent_state(self, recurrent_states: Tensor, layer_idx: int, *more: Any, **named: Any) -> Tensor:
        self._require_states(layer_idx)
        states: Tensor = super().update_recurrent_state(recurrent_states, layer_idx, *more, **named)
        return states

    def _require_states(self, layer_idx: int) -> None:
        if not isinstance(self.layers[layer_idx], LinearAttentionCacheLayerMixin):
            raise AttentionContractError(f"layer {layer_idx} keeps recurrent or convolution state, and does not say so")


def _layer_states(index: int, layer: Any) -> list[LayerState]:
    states = [
        LayerState(index, convolution, number, tuple(value.shape[1:]), _name(value.dtype), value.element_size())
        for convolution, values in ((True, layer.conv_states), (False, layer.recurrent_states))
        for number, value in values.items()
        if value is not None
    ]
    if not states:
        raise AttentionContractError(f"layer {index} keeps its state in a place of its own")
    return states


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


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

    def __init__(self, probe: _CacheProbe) -> None:
        self._probe = probe
        self._numbers: list[int | None] = []
        self.layers: list[LayerKv] = []
        self.mask: _MaskNote | None = None

    def attend(self, call: AttentionCall) -> Tensor:
        if call.layer is not None and call.layer in self._numbers:
            raise AttentionContractError(f"layer {call.layer} attends more than once")
        self._check(call)
        heads, tokens = call.query.shape[1:3]
        self._numbers.append(call.layer)
        self.layers.append(LayerKv(call.key.shape[1], call.key.shape[3], call.value.shape[3]))
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
        forgets = call.layer in self._probe.windowed_layers
        if not _same_reach(call.reach, self.mask) or (forgets and call.reach == Reach()):
            raise AttentionContractError(f"layer {call.layer} masks its attention in a way that is not supported")
        unknown = [
            name for name, value in call.extras.items() if isinstance(value, Tensor) and name not in _HARMLESS_EXTRAS
        ]
        if unknown:
            raise AttentionContractError(f"layer {call.layer} attends with {unknown[0]!r}, which is not supported")

    def result(self) -> tuple[LayerKv, ...]:
        """What the layers that attend cache, in order; all that are to must have attended."""
        expected = self._probe.attending_layers
        if expected and not self.layers:
            raise AttentionContractError("its layers do not use Transformers' attention interface, whatever they say")
        known = [number for number in self._numbers if number is not None]
        if len(known) < len(self._numbers) == len(expected):  # layers that share their modules come in order
            known = expected
        if sorted(known) != expected:
            silent = sorted(set(expected) - set(known))
            told = f"layers {silent or known} of {len(self._probe.layers)}"
            raise AttentionContractError(f"{told} do not attend through the interface")
        if known != expected:
            raise AttentionContractError("its layers attend out of order")
        return tuple(self.layers)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees which of some tensors any operation reads."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._numbers = {id(tensor): number for number, tensor in enumerate(tensors)}
        self.seen = [False] * len(tensors)

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        overwritten = 1 if func is torch.ops.aten.copy_.default else 0
        for value in tree_leaves((args[overwritten:], kwargs)):
            if id(value) in self._numbers:
                self.seen[self._numbers[id(value)]] = True
        return func(*args, **(kwargs or {}))
