"""A model as the frontend serves it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from aegaeon.core.generation import ModelCard
from aegaeon.core.model import ModelSpec
from aegaeon.engine.prepared.prepared_model import PreparedModel
from aegaeon.runtime.frontend.text import ModelText


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model as the frontend needs it. ``sampling_defaults``: by field of ``SamplingParams``; ``identity``: as in
    ``PreparedModel``."""

    spec: ModelSpec
    card: ModelCard
    text: ModelText
    vocab_size: int
    eos_ids: tuple[int, ...] = ()
    sampling_defaults: Mapping[str, float] = field(default_factory=dict)
    identity: str = ""

    @classmethod
    def of(cls, model: PreparedModel) -> ServedModel:
        """Load the tokenizer. Raises ``TokenizerError``."""
        text = ModelText(model.config.path, chat_template=model.config.chat_template)
        card = model_card(model, has_chat_template=text.has_chat_template)
        facts = model.with_tokenizer(text.eos_token_id, ()).facts
        defaults = facts.sampling_defaults if model.config.generation_config == "auto" else {}
        return cls(model.spec, card, text, facts.vocab_size, facts.eos_token_ids, defaults, model.identity)


def model_card(model: PreparedModel, *, has_chat_template: bool = False, failure: str | None = None) -> ModelCard:
    """What clients see of it; without its tokenizer: ``failure``, why it cannot be had."""
    return ModelCard(
        model.spec.name,
        model.facts.architecture,
        model.spec.max_context_tokens,
        model.facts.parameters,
        int(time.time()),
        has_chat_template,
        failure,
    )
