"""Fields that other servers know and that would change the answer: refused here, not ignored.

Each has the values that change nothing; null never does. Whatever is in no table is ignored, because OpenAI's clients
send fields that are for OpenAI's own books (``user``, ``metadata``, ``store``, ``service_tier``, ...).

Does not know: the fields that are supported.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from aegaeon.server.errors import ApiError

logger = logging.getLogger(__name__)

Neutral = Mapping[str, tuple[Any, ...]]

# The first one of a body is blamed, so what others depend on comes first.
UNSUPPORTED: Neutral = {
    # OpenAI
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "echo": (False,),
    "suffix": ("",),
    "audio": (),
    "modalities": (["text"],),
    "reasoning_effort": ("medium",),
    "verbosity": ("medium",),
    "web_search_options": (),
    # vLLM: the constraint on what is generated
    "structured_outputs": (),
    "structural_tag": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_decoding_backend": (),
    "guided_whitespace_pattern": (),
    "allowed_token_ids": (),
    "bad_words": ([],),
    "logits_processors": ([],),
    "thinking_token_budget": (),
    "repetition_detection": (),
    # vLLM: how it is chosen
    "use_beam_search": (False,),
    "length_penalty": (1.0,),
    "prompt_logprobs": (),
    # vLLM: what the prompt is
    "prompt_embeds": (),
    "truncate_prompt_tokens": (),
    "chat_template": (),
    "documents": ([],),
    "mm_processor_kwargs": ({},),
    "media_io_kwargs": ({},),
    # vLLM: what comes back
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "detokenize": (True,),
    "include_reasoning": (True,),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "return_prompt_text": (False,),
    # vLLM: how it is served
    "priority": (0,),
    "cache_salt": (),
    "request_id": (),
    "kv_transfer_params": (),
    "vllm_xargs": ({},),
    # llama.cpp, SGLang, TGI and others
    "grammar": ("",),
    "json_schema": (),
    "regex": (),
    "ebnf": (),
    "repeat_penalty": (1.0,),
    "typical_p": (1.0,),
    "top_a": (0.0,),
    "tfs_z": (1.0,),
    "mirostat": (0,),
    "dynatemp_range": (0.0,),
    "xtc_probability": (0.0,),
    "dry_multiplier": (0.0,),
    "n_predict": (-1,),
    "max_new_tokens": (),
    "no_stop_trim": (False,),
    "lora_path": (),
    "custom_logit_processor": (),
    "reasoning": (),
    "thinking": (),
    "enable_thinking": (),  # belongs in chat_template_kwargs
}
HARMLESS = frozenset(
    {"user", "metadata", "store", "service_tier", "prediction", "parallel_tool_calls"}
    | {"prompt_cache_key", "prompt_cache_retention", "safety_identifier"}
)


def refuse_unsupported(extra: Mapping[str, Any], unsupported: Neutral, prefix: str = "") -> None:
    """Raises ``ApiError`` 400 for the first field of the table that has a value which would change the answer.

    ``extra``: the fields of a body that no schema knows.
    """
    for name, neutral in unsupported.items():
        value = extra.get(name)
        if value is not None and not any(_same(value, item) for item in neutral):
            raise unsupported_parameter(prefix + name)
    unknown = sorted(extra.keys() - unsupported.keys() - HARMLESS)
    if unknown:
        logger.debug("ignored fields that are not known: %.200s", ", ".join(unknown[:8]))


def unsupported_parameter(name: str, but: str = "") -> ApiError:
    """The answer to a field that is not supported; ``but``: the values that are."""
    return ApiError(400, f"{name} is not supported{but}", param=name, code="unsupported_parameter")


def _same(value: Any, neutral: Any) -> bool:
    # True == 1 and 0 == False in Python, not in JSON.
    return isinstance(value, bool) is isinstance(neutral, bool) and bool(value == neutral)
