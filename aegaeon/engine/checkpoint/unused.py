"""Tensors of a checkpoint that the model has no place for: which do no harm, and which would change what it says.

A tensor that is left over means that the weights are not what the configuration takes them for: scales of quantized
weights, biases that the configuration denies, layers that it does not count, adapters. Transformers warns and goes on;
a service must not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from aegaeon.engine.checkpoint.stored_tensor import FLOAT_TYPES, StoredTensor

_COMPUTED = re.compile(
    r"(^|\.)(rotary_emb|rotary_pos_emb|rotary|rope)\.(original_)?(inv_freq|cos_cached|sin_cached)$"
    r"|(^|\.)inv_freq$"
    r"|(^|\.)position_ids$"
    r"|(^|\.)masked_bias$"
)
"""Once persistent buffers, which the modules now compute themselves."""

_MASK = re.compile(r"(^|\.)(attn|attention|self_attn|self_attention)\.(bias|causal_mask|mask)$")
"""Causal masks of GPT-2 and its kin, if they are square; of one dimension it would be a bias."""

_PREDICTS_FURTHER_TOKENS = re.compile(r"(^|\.)(mtp|mtp_layers|mtp_block|nextn)\.")
"""Heads for drafting, beside the model."""

_SEES_OR_HEARS = re.compile(
    r"^(model\.)?(vision_tower|vision_model|visual|vision|image_newline|audio_tower|audio_model|audio"
    r"|multi_modal_projector|multimodal_projector|mm_projector|embed_vision|embed_audio)(\.|$)"
)
"""Parts of a multimodal model that text does not pass through."""

_LAYER = re.compile(r"(^|\.)layers\.(\d+)\.")


class Shaped(Protocol):
    """A tensor, on disk or in memory."""

    @property
    def shape(self) -> tuple[int, ...]: ...


def unused_tensors(model: Any, stored: Mapping[str, Shaped], names: Iterable[str]) -> list[str]:
    """Those ``names`` that matter, sorted. ``model``: the one that has no place for them; all are ``stored``."""
    harmless = _harmless(model)
    return sorted(name for name in names if not harmless(name, stored.get(name)))


def coded_tensors(model: Any, stored: Mapping[str, StoredTensor]) -> list[str]:
    """Tensors whose numbers are codes (integers, 8-bit floats) of something else, sorted.

    Where the model itself has an integer of that name, it is what it is.
    """
    wanted = {name: tensor.dtype for name, tensor in model.state_dict(keep_vars=True).items()}
    coded = {name for name, tensor in stored.items() if tensor.dtype not in FLOAT_TYPES}
    return unused_tensors(model, stored, (name for name in coded if wanted.get(name) != stored[name].dtype))


def _harmless(model: Any) -> Callable[[str, Shaped | None], bool]:
    patterns = [_COMPUTED, _PREDICTS_FURTHER_TOKENS, _SEES_OR_HEARS]
    patterns += [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]
    drafting = _drafting_layers(model.config.get_text_config())

    def harmless(name: str, tensor: Shaped | None) -> bool:
        if _MASK.search(name):
            return tensor is None or _is_square(tensor)
        layer = _LAYER.search(name)
        drafts = layer is not None and int(layer[2]) in drafting
        return drafts or any(pattern.search(name) for pattern in patterns)

    return harmless


def _drafting_layers(config: Any) -> range:
    """Layers after the last that only predict further tokens (DeepSeek V3 and its kin)."""
    layers, more = config.num_hidden_layers, getattr(config, "num_nextn_predict_layers", None)
    return range(layers, layers + more) if isinstance(more, int) else range(0)


def _is_square(tensor: Shaped) -> bool:
    return len(tensor.shape) >= 2 and tensor.shape[-1] == tensor.shape[-2]
