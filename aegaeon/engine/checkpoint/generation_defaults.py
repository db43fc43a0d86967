"""What a model directory says about generating: which tokens end a text, and how to sample when nobody says.

The tokens are those of ``generation_config.json`` and of ``config.json``, as in vLLM (the tokenizer's, which it adds
too, are known to whoever loads the tokenizer). Sampling follows vLLM as well: the same six values count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aegaeon.core.sampling import SamplingError, SamplingParams
from aegaeon.engine.errors import UnsupportedModelError
from aegaeon.json_file import JsonFileError, read_object

_SAMPLING_KEYS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens")
"""Of ``generation_config.json``, and at the same time fields of ``SamplingParams``."""

_TEXT_PARTS = ("text_config", "llm_config", "language_config", "thinker_config")
"""Where a ``config.json`` of several media keeps what its language model is."""


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """``sampling``: by field of ``SamplingParams``. ``notes``: what is wrong in the files, and was left out."""

    eos_token_ids: tuple[int, ...]
    sampling: Mapping[str, float]
    notes: tuple[str, ...]


def read_generation_defaults(path: Path, name: str, config: Any) -> GenerationDefaults:
    """The defaults of a model directory, whose text configuration is ``config``. Raises ``UnsupportedModelError``."""
    file = path / "generation_config.json"
    try:
        values = read_object(file) if file.exists() or file.is_symlink() else {}
    except JsonFileError as error:
        raise UnsupportedModelError(path, name, f"its {file.name} {error.reason}") from error
    eos_token_ids, wrong_ids = known_ids(_eos_token_ids(values, path, config), config.vocab_size)
    sampling, wrong_values = _sampling(values)
    return GenerationDefaults(eos_token_ids, sampling, (*wrong_ids, *wrong_values))


def known_ids(token_ids: tuple[Any, ...], vocab_size: int) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The ids that are in the vocabulary, each once, and a note about each other one."""
    good = [token for token in token_ids if type(token) is int and 0 <= token < vocab_size]
    bad = [token for token in token_ids if token is not None and token not in good]
    notes = (f"eos_token_id {token!r} is ignored: the vocabulary has {vocab_size} tokens" for token in bad)
    return tuple(dict.fromkeys(good)), tuple(dict.fromkeys(notes))


def _eos_token_ids(values: Mapping[str, Any], path: Path, config: Any) -> tuple[Any, ...]:
    """The generation configuration's, and those that ``config.json`` itself names.

    What the configuration's class has for a default counts only where neither says anything: it is of another model's
    vocabulary.
    """
    said = read_object(path / "config.json")
    parts = (said.get(name) for name in _TEXT_PARTS)
    text = next((part for part in parts if isinstance(part, dict) and part.get("eos_token_id") is not None), {})
    own = said.get("eos_token_id", text.get("eos_token_id"))
    named = (*_as_ids(values.get("eos_token_id")), *_as_ids(own))
    return named or _as_ids(getattr(config, "eos_token_id", None))


def _as_ids(value: Any) -> tuple[Any, ...]:
    ids = value if isinstance(value, list) else [value]
    return tuple(token for token in ids if token is not None)


def _sampling(values: Mapping[str, Any]) -> tuple[dict[str, float], list[str]]:
    """The values that can be, and notes about the others."""
    good: dict[str, float] = {}
    notes: list[str] = []
    for key in _SAMPLING_KEYS:
        value = 0 if key == "top_k" and values.get(key) == -1 else values.get(key)
        problem = _problem(key, value)
        if problem is not None:
            notes.append(f"{key} of generation_config.json is ignored: {problem}")
        elif value is not None:
            good[key] = value
    return good, notes


def _problem(key: str, value: Any) -> str | None:
    if value is None:
        return None
    whole = key in ("top_k", "max_new_tokens")
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        return f"{value!r} is not a {'whole ' * whole}number"
    given: dict[str, Any] = {key: value}
    try:
        SamplingParams(**given)
    except (SamplingError, OverflowError) as error:
        return str(error)
    return None
