"""Fields that other servers know and that would change the answer: refused here, not ignored.

Each has the values that change nothing; null never does. Whatever is in no table is ignored, because OpenAI's clients
send fields that are for OpenAI's own books (``user``, ``metadata``, ``store``, ``service_tier``, ...).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from aegaeon.server.http.errors import ApiError

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
    "max_output_tokens": (),
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
    "request_id": (),
    "kv_transfer_params": (),
    "vllm_xargs": ({},),
    # llama.cpp, Ollama, SGLang, TGI, Transformers and others: the constraint on what is generated
    "grammar": ("",),
    "json_schema": (),
    "regex": (),
    "ebnf": (),
    "format": ("",),
    "bad_words_ids": ([],),
    "force_words_ids": ([],),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "sequence_bias": ({},),
    "banned_tokens": ([],),
    "banned_strings": ([],),
    "custom_token_bans": ("",),
    "ban_eos_token": (False,),
    # the same: how it is chosen
    "do_sample": (True,),
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "beam_width": (1,),
    "num_return_sequences": (1,),
    "diversity_penalty": (0.0,),
    "penalty_alpha": (0.0,),
    "guidance_scale": (1.0,),
    "negative_prompt": ("",),
    "repeat_penalty": (1.0,),
    "rep_pen": (1.0,),
    "repeat_last_n": (-1,),  # ours look at all tokens
    "penalty_last_n": (-1,),
    "repetition_penalty_range": (0,),
    "encoder_repetition_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "typical_p": (1.0,),
    "typical": (1.0,),
    "top_a": (0.0,),
    "top_n_sigma": (-1.0, 0.0),
    "nsigma": (0.0,),
    "tfs_z": (1.0,),
    "tfs": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "mirostat": (0,),
    "mirostat_mode": (0,),
    "dynatemp_range": (0.0,),
    "dynamic_temperature": (False,),
    "temperature_last": (False,),
    "smoothing_factor": (0.0,),
    "xtc_probability": (0.0,),
    "dry_multiplier": (0.0,),
    "min_keep": (0,),
    "samplers": (),
    "sampler_priority": (),
    "sampler_order": (),
    "random_seed": (),
    "sampling_seed": (),
    "watermark": (False,),
    "custom_logit_processor": (),
    "custom_params": ({},),
    # the same: where it ends
    "n_predict": (-1,),
    "num_predict": (-1,),
    "max_new_tokens": (),
    "min_new_tokens": (0,),
    "max_length": (),
    "min_length": (0,),
    "max_time": (),
    "t_max_predict_ms": (0,),
    "n_indent": (0,),
    "stop_sequences": ([],),
    "stop_regex": ([], ""),
    "stop_words": ([],),
    "stopping_strings": ([],),
    "custom_stopping_strings": ([], ""),
    "no_stop_trim": (False,),
    "exponential_decay_length_penalty": (),
    # the same: what the prompt is
    "system": ("",),
    "template": ("",),
    "raw": (False,),
    "context": ([],),
    "images": ([],),
    "image_data": ([],),
    "audio_data": ([],),
    "inputs": (),
    "input_ids": (),
    "input_embeds": (),
    "truncate": (False,),
    "truncation_length": (),
    "num_ctx": (),
    "transforms": ([],),
    "add_bos_token": (True,),
    "safe_prompt": (False,),
    "prompt_mode": (),
    "enable_search": (False,),
    # the same: what comes back
    "n_probs": (0,),
    "top_n_tokens": (0,),
    "return_logprob": (False,),
    "top_logprobs_num": (0,),
    "return_tokens": (False,),
    "return_full_text": (False,),
    "return_hidden_states": (False,),
    "details": (False,),
    "decoder_input_details": (False,),
    "response_fields": ([],),
    # the same: adapters, thinking, and whole bags of options
    "lora": ([],),
    "lora_path": (),
    "adapter_id": (),
    "reasoning": (),
    "reasoning_format": ("none",),
    "separate_reasoning": (False,),
    "thinking": (),
    "thinking_budget": (),
    "think": (),
    "enable_thinking": (),  # belongs in chat_template_kwargs
    "options": ({},),
    "parameters": ({},),
    "sampling_params": ({},),
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
