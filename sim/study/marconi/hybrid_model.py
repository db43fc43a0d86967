"""A model of attention, state-space and MLP layers: what a prefix of it takes to keep, and what it saves."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

_VALUE_BYTES = 2
_CONVOLUTION = 4  # tokens that a state-space layer's convolution looks back


@dataclass(frozen=True)
class HybridModel:
    """Marconi's 7B hybrid unless something else is said. ``width``: of a token's activations."""

    ssm_layers: int = 24
    attention_layers: int = 4
    mlp_layers: int = 28
    width: int = 4096
    state_dimension: int = 128

    @cached_property
    def state_bytes(self) -> int:
        """Of the recurrent states of all layers at one place in a sequence, however long it is."""
        recurrent = self.width * self.state_dimension
        convolution = 2 * (self.width + self.state_dimension) * _CONVOLUTION
        return self.ssm_layers * (recurrent + convolution) * _VALUE_BYTES

    @cached_property
    def kv_bytes(self) -> int:
        """Of one token's KV in all attention layers."""
        return self.attention_layers * 2 * self.width * _VALUE_BYTES

    def flops(self, tokens: int) -> float:
        """To process that many tokens from the first one on."""
        return tokens * (self._per_token + self._per_pair * tokens)

    @cached_property
    def _per_token(self) -> float:
        width = self.width
        attention = self.attention_layers * 8 * width**2
        mlp = self.mlp_layers * 16 * width**2
        return attention + mlp + self.ssm_layers * (12 * width**2 + 16 * width * self.state_dimension + 10 * width)

    @cached_property
    def _per_pair(self) -> float:
        return self.attention_layers * 4 * self.width
