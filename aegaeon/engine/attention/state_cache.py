"""The states of the sequences of a step, where Transformers' recurrent and convolution layers look for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicCache

from aegaeon.core.kv_shape import LayerState
from aegaeon.engine.errors import ModelError


class StateCache(DynamicCache):  # type: ignore[misc]
    """A cache that has ``states``; keys and values are elsewhere: paged attention has them."""

    def __init__(self, config: Any, states: Sequence[LayerState]) -> None:
        super().__init__(config=config)
        self._states = states

    def begin(self, values: Sequence[Tensor], fresh: bool = False) -> None:
        """Have these values of the states, ``[sequences, ...]`` each; ``fresh``: the sequences have no token yet."""
        for state, value in zip(self._states, values, strict=True):
            layer = self.layers[state.layer]
            layer.has_previous_state = dict.fromkeys(layer.has_previous_state, not fresh)
            if state.convolution:
                layer.conv_kernel_size[state.index] = value.shape[-1]
                layer.is_conv_states_initialized[state.index] = True
            else:
                layer.is_recurrent_states_initialized[state.index] = True
            _tensors(layer, state)[state.index] = value

    @property
    def values(self) -> list[Tensor]:
        """What the states are now."""
        return [_tensors(self.layers[state.layer], state)[state.index] for state in self._states]

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return key_states, value_states

    def get_seq_length(self, *_: Any, **__: Any) -> int:
        raise ModelError("it asks its cache for a position, and the sequences of a batch do not share one")


def _tensors(layer: Any, state: LayerState) -> Any:
    return layer.conv_states if state.convolution else layer.recurrent_states
