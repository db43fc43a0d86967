"""How long a context a configuration allows, where its rotary positions are scaled and where not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from aegaeon.engine.checkpoint.config_numbers import rotary

_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length")

_LENGTH_DEPENDENT = frozenset({"dynamic", "longrope", "su"})
"""Their frequencies follow from the limit: a longer one would change what short contexts say."""


@dataclass(frozen=True, slots=True)
class ContextLimit:
    """``usual_tokens``: where nobody asks for another; ``most_tokens``: what may be asked for."""

    usual_tokens: int
    most_tokens: int


def context_limit(config: Any) -> ContextLimit | None:
    """The limit of a text configuration; None where it names none.

    Scaling (the YaRN recipe of model cards) reaches to ``factor`` times the length before it, which is
    ``original_max_position_embeddings``, or ``max_position_embeddings`` itself where a configuration does not say.
    """
    named = (getattr(config, key, None) for key in _KEYS)
    own = next((value for value in named if isinstance(value, int) and value > 0), None)
    if own is None:
        return None
    usual = most = own
    for rope in _scalings(config):
        original = rope.get("original_max_position_embeddings")
        scaled = int(rope["factor"] * (original or own))
        most = max(most, scaled)
        if original and _type(rope) not in _LENGTH_DEPENDENT:
            usual = max(usual, scaled)
    return ContextLimit(usual, most)


def _scalings(config: Any) -> Iterator[Mapping[str, Any]]:
    """The scalings by a factor: one for all layers, or one for each kind of layer."""
    for scaling in rotary(config):
        factor = scaling.get("factor")
        if isinstance(factor, int | float) and factor >= 1 and _type(scaling) not in (None, "default"):
            yield scaling


def _type(rope: Mapping[str, Any]) -> Any:
    return rope.get("rope_type", rope.get("type"))
