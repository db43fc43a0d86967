"""What an inspector's process does: it looks at models, and at their tokenizers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from aegaeon.core.config import ModelConfig
from aegaeon.engine.architecture.prepare import prepare_models
from aegaeon.engine.prepared.prepared_model import Findings, PreparedModel, RefusedModel
from aegaeon.runtime.frontend.served_model import ServedModel
from aegaeon.runtime.frontend.text import TokenizerError

logger = logging.getLogger(__name__)


def inspect_models(configs: Sequence[ModelConfig], block_tokens: int, cache_dir: Path | None) -> Findings:
    """As ``prepare_models``; models without a tokenizer are refused, and what the others' say is noted."""
    prepared, refused = prepare_models(configs, block_tokens, cache_dir)
    good = []
    for model in prepared:
        found = _with_tokenizer(model)
        if isinstance(found, PreparedModel):
            good.append(found)
        else:
            refused.append(found)
    return good, refused


def _with_tokenizer(model: PreparedModel) -> PreparedModel | RefusedModel:
    try:
        text = ServedModel.of(model).text
    except TokenizerError as error:
        return RefusedModel(model.config, str(error))
    except Exception as error:  # A tokenizer is anybody's, too.
        logger.exception("model %s: its tokenizer fails in a way that nobody foresaw", model.config.name)
        return RefusedModel(model.config, f"its tokenizer fails: {type(error).__name__}: {error}")
    return model.with_tokenizer(text.eos_token_id, text.notes)
