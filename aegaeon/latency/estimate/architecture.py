"""The sizes of a decoder-only model, counted from its Hugging Face ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aegaeon.core.kv_shape import KvShape, LayerKv
from aegaeon.latency.estimate.errors import LatencyError

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture of experts in every layer: ``active`` of ``count`` run per token, ``shared_size`` always does."""

    count: int
    active: int
    size: int
    shared_size: int = 0


@dataclass(frozen=True, slots=True)
class Architecture:
    """Sizes of a model with gated feed-forward layers (three matrices), as all current ones have.

    ``feed_forward_size`` is the width of a dense layer; models with ``experts`` have those instead.
    """

    layers: int
    hidden_size: int
    heads: int
    kv_heads: int
    head_size: int
    feed_forward_size: int
    vocabulary: int
    tied_embeddings: bool
    max_context_tokens: int
    element_bytes: int = 2
    experts: Experts | None = None

    def __post_init__(self) -> None:
        sizes = (self.layers, self.hidden_size, self.heads, self.kv_heads, self.head_size, self.vocabulary)
        if min(*sizes, self.max_context_tokens) < 1:
            raise LatencyError(f"the model's sizes must be positive: {self}")

    @property
    def expert_layers(self) -> int:
        """Layers whose feed-forward part is a mixture of experts: all or none."""
        return self.layers if self.experts else 0

    @property
    def attention_parameters(self) -> int:
        """Parameters of one layer's projections (queries, keys, values, output)."""
        return 2 * self.hidden_size * self.head_size * (self.heads + self.kv_heads)

    @property
    def embedding_parameters(self) -> int:
        """Parameters of the embedding table alone."""
        return self.vocabulary * self.hidden_size

    @property
    def parameters(self) -> int:
        """All parameters; norms and biases (under 0.1 %) are left out."""
        tables = self.embedding_parameters * (1 if self.tied_embeddings else 2)
        return tables + self.layers * (self.attention_parameters + self._feed_forward(self._all_experts))

    @property
    def layer_parameters_per_token(self) -> int:
        """Parameters of the layers that one token is multiplied with; the tables are not among them."""
        return self.layers * (self.attention_parameters + self._feed_forward(self._active_experts))

    @property
    def step_parameters(self) -> int:
        """Parameters that a decode step of one request reads: layers and output head."""
        return self.layer_parameters_per_token + self.embedding_parameters

    @property
    def weight_bytes(self) -> int:
        """Bytes of all parameters."""
        return self.parameters * self.element_bytes

    @property
    def kv_shape(self) -> KvShape:
        """Geometry of its KV cache, in the type of the weights."""
        layer = LayerKv(self.kv_heads, self.head_size, self.head_size)
        return KvShape((layer,) * self.layers, element_bytes=self.element_bytes)

    @property
    def _all_experts(self) -> int:
        return self.experts.count if self.experts else 0

    @property
    def _active_experts(self) -> int:
        return self.experts.active if self.experts else 0

    def _feed_forward(self, routed: int) -> int:
        if self.experts is None:
            return 3 * self.hidden_size * self.feed_forward_size
        router = self.hidden_size * self.experts.count
        return router + 3 * self.hidden_size * (routed * self.experts.size + self.experts.shared_size)

    @classmethod
    def of(cls, config: Mapping[str, Any], where: str = "config.json") -> Architecture:
        """Read a ``config.json``. Raises ``LatencyError`` that names what is missing."""
        text = config.get("text_config")
        config = {**text} if isinstance(text, Mapping) else config
        hidden = _number(config, where, "hidden_size", "n_embd")
        heads = _number(config, where, "num_attention_heads", "n_head")
        return cls(
            layers=_number(config, where, "num_hidden_layers", "n_layer"),
            hidden_size=hidden,
            heads=heads,
            kv_heads=_number(config, where, "num_key_value_heads", default=heads),
            head_size=_number(config, where, "head_dim", default=hidden // max(heads, 1)),
            feed_forward_size=_feed_forward_size(config, where),
            vocabulary=_number(config, where, "vocab_size"),
            tied_embeddings=bool(config.get("tie_word_embeddings", False)),
            max_context_tokens=_number(
                config, where, "max_position_embeddings", "model_max_length", "seq_length", "n_positions"
            ),
            element_bytes=_element_bytes(config, where),
            experts=_experts(config, where),
        )


def _number(config: Mapping[str, Any], where: str, *keys: str, default: int | None = None) -> int:
    found = next((config[key] for key in keys if config.get(key) is not None), default)
    if found is None:
        raise LatencyError(f"{where} does not say {keys[0]!r}: it must describe a decoder-only model")
    if isinstance(found, bool) or not isinstance(found, int):
        raise LatencyError(f"{where}: {keys[0]!r} must be a whole number, got {found!r}")
    return found


def _feed_forward_size(config: Mapping[str, Any], where: str) -> int:
    size = _number(config, where, "intermediate_size", "n_inner")
    return size // 2 if config.get("model_type") == "qwen" else size  # the first Qwen counts both gated halves


def _element_bytes(config: Mapping[str, Any], where: str) -> int:
    dtype = str(config.get("torch_dtype") or config.get("dtype") or "bfloat16")
    if dtype not in _BYTES:
        raise LatencyError(f"{where}: weights of type {dtype!r} are unknown; there are: {', '.join(_BYTES)}")
    return _BYTES[dtype]


def _experts(config: Mapping[str, Any], where: str) -> Experts | None:
    count = next(
        (config[key] for key in ("num_experts", "num_local_experts", "n_routed_experts") if config.get(key)), 0
    )
    if not count:
        return None
    size = _number(config, where, "moe_intermediate_size", "intermediate_size")
    shared = _number(config, where, "shared_expert_intermediate_size", default=0)
    shared += _number(config, where, "n_shared_experts", default=0) * size
    return Experts(count, _number(config, where, "num_experts_per_tok"), size, shared)
