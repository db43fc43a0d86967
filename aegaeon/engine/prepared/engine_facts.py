"""What looking at a model directory has found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from aegaeon.core.kv_shape import KvShape


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What the control plane must know of a model. ``dtype`` is a name, such as ``bfloat16``.

    ``sampling_defaults``: by field of ``SamplingParams``. ``notes``: what the operator should know.
    """

    architecture: str
    parameters: int
    weight_bytes: int
    kv_shape: KvShape
    max_context_tokens: int
    eos_token_ids: tuple[int, ...]
    vocab_size: int
    dtype: str
    sampling_defaults: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
