"""A request against its model: whether it fits, and what of its sampling the client left open."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from aegaeon.core.generation import ChatPrompt, ContextLengthError, FieldError, GenerationRequest, Prompt, PromptError
from aegaeon.core.sampling import SamplingParams
from aegaeon.runtime.frontend.served_model import ServedModel


def fit(model: ServedModel, prompt_ids: Sequence[int], request: GenerationRequest) -> SamplingParams:
    """Check the prompt, settle what the client left open, the output limit and the seed."""
    limit, sampling = model.spec.max_context_tokens, _with_defaults(model.sampling_defaults, request)
    room = limit - len(prompt_ids)
    if room < 1:
        raise prompt_too_long(model, str(len(prompt_ids)), request.prompt)
    if room < sampling.max_new_tokens and not request.fit_context:
        raise ContextLengthError(
            f"{_context(model)} However, you requested {len(prompt_ids) + sampling.max_new_tokens} tokens "
            f"({len(prompt_ids)} in the {_param(request.prompt)}, {sampling.max_new_tokens} in the completion). "
            f"Please reduce the length of the {_param(request.prompt)} or completion.",
            "max_tokens",
        )
    _require_known_tokens(model, prompt_ids, request)
    seed = sampling.seed if sampling.seed is not None else secrets.randbits(63)
    new_tokens = min(sampling.max_new_tokens, room)
    return replace(
        sampling,
        seed=seed,
        max_new_tokens=new_tokens,
        min_new_tokens=min(sampling.min_new_tokens, new_tokens),
    )


def prompt_too_long(model: ServedModel, tokens: str, prompt: Prompt) -> ContextLengthError:
    """A prompt of so many tokens leaves no room for output."""
    param = _param(prompt)
    message = f"{_context(model)} However, your {param} resulted in {tokens} tokens. "
    return ContextLengthError(f"{message}Please reduce the length of the {param}.", param)


def _require_known_tokens(model: ServedModel, prompt_ids: Sequence[int], request: GenerationRequest) -> None:
    """Ids become indices further on: none may be outside the vocabulary, and not all may be forbidden."""
    vocabulary, sampling = range(model.vocab_size), request.sampling
    for error, ids, name in (
        (PromptError, prompt_ids, _param(request.prompt)),
        (FieldError, sampling.stop_token_ids, "stop_token_ids"),
    ):
        bad = next((token for token in ids if token not in vocabulary), None)
        if bad is not None:
            raise error(f"{name}: token id {bad} is not in the model's vocabulary of {model.vocab_size}", name)
    beams = sampling.beams
    if beams is not None and model.spec.kv_shape.states:
        message = f"use_beam_search: model {model.spec.name} has recurrent layers, whose states beams do not share"
        raise FieldError(message, "use_beam_search")
    if beams is not None and beams.width >= model.vocab_size:
        message = f"best_of: {beams.width} beams are too many for a model of {model.vocab_size} tokens"
        raise FieldError(message, "best_of")
    if sampling.min_new_tokens and {*sampling.stop_token_ids, *model.eos_ids}.issuperset(vocabulary):
        message = "stop_token_ids: every token of the vocabulary is one, which leaves none for min_tokens"
        raise FieldError(message, "stop_token_ids")


def _context(model: ServedModel) -> str:
    """The refusal of a prompt that is too long, in the words that clients look for."""
    return f"This model's maximum context length is {model.spec.max_context_tokens} tokens."


def _param(prompt: Prompt) -> str:
    return "messages" if isinstance(prompt, ChatPrompt) else "prompt"


def _with_defaults(defaults: Mapping[str, float], request: GenerationRequest) -> SamplingParams:
    """What the client said, and the model's defaults where it said nothing."""
    given: dict[str, Any] = {name: value for name, value in defaults.items() if name in request.unset}
    if "max_new_tokens" in given:
        given["max_new_tokens"] = max(given["max_new_tokens"], request.sampling.min_new_tokens)
    return replace(request.sampling, **given)
