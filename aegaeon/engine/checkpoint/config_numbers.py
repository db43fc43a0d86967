"""Numbers that a configuration's class takes as they are, and that no model can run with.

Most are checked by Transformers, or fit no stored tensor. With these a model would be built, and talk nonsense or fail
at its first request.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from reprlib import repr as shown
from typing import Any

MOST_CONTEXT_TOKENS = 2**31 - 1

_EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "layernorm_epsilon", "norm_eps", "norm_epsilon")


def wrong_number(config: Any) -> str | None:
    """What a text configuration says that cannot be; None where nothing is wrong."""
    for name in _EPSILONS:
        value = getattr(config, name, None)
        if value is not None and not _is_between(value, 0, 1):
            return f"{name} {shown(value)}"
    for rope in rotary(config):
        for name, most in (
            ("rope_theta", sys.float_info.max),
            ("factor", MOST_CONTEXT_TOKENS),
            ("original_max_position_embeddings", MOST_CONTEXT_TOKENS),
        ):
            value = rope.get(name)
            if value is not None and not (_is_between(value, 0, most) and value > 0):
                return f"{name} {shown(value)}"
    return None


def rotary(config: Any) -> Iterator[Mapping[str, Any]]:
    """What a text configuration says of rotary positions: for all layers, and for each kind of layer."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    if isinstance(rope, Mapping):
        yield rope
        yield from (inner for inner in rope.values() if isinstance(inner, Mapping))


def _is_between(value: Any, least: float, most: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most  # NaN is not
