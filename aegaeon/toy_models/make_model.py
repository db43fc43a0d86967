"""Small models made on the spot: any causal-LM architecture of Transformers, random or taught one text.

For demos and tests; nothing is downloaded. Sizes are mapped onto whatever names an architecture's configuration has for
them, so there is no list of architectures here.
"""

from __future__ import annotations

import dataclasses
import difflib
import shutil
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerBase
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from aegaeon.engine.architecture.quiet import quiet_transformers
from aegaeon.toy_models.make_tokenizer import make_tokenizer
from aegaeon.toy_models.model_request import MakeModelError, ModelSizes, check_request
from aegaeon.toy_models.teach_model import Lesson, Progress, teach

DEFAULT_STEPS = 150
_EXPERTS = 4
_MOST_TIMES_EXPECTED = 50
_BUILD_ERRORS = (
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    IndexError,
    RuntimeError,
    ImportError,
    AssertionError,
    NotImplementedError,
    ZeroDivisionError,
    StrictDataclassError,
)


@dataclass(frozen=True, slots=True)
class MadeModel:
    """What was made. ``lesson`` is None for a random model."""

    directory: Path
    architecture: str
    parameters: int
    weight_bytes: int
    sizes: ModelSizes
    dtype: str
    seconds: float
    lesson: Lesson | None


def make_model(
    arch: str,
    directory: Path,
    sizes: ModelSizes | None = None,
    *,
    dtype: str = "bfloat16",
    seed: int = 0,
    learn: Path | None = None,
    steps: int = DEFAULT_STEPS,
    progress: Progress | None = None,
) -> MadeModel:
    """Write a model directory: configuration, safetensors weights, a trained tokenizer with a chat template.

    ``arch``: a model type of Transformers that has a causal LM. ``learn``: a text file the model will know by heart
    (see ``aegaeon.toy_models.teach_model``) after ``steps`` steps. ``directory`` must not exist or be empty; it appears
    only when it is complete. The same arguments give the same model. Raises ``MakeModelError``.
    """
    start_s = time.monotonic()
    sizes = sizes or ModelSizes()
    text = check_request(directory, dtype, learn, steps)
    config_class = _config_class(arch)
    tokenizer = make_tokenizer(sizes.vocab_size, text, sizes.max_context)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _build(arch, config_class, sizes, tokenizer, torch.float32 if text else getattr(torch, dtype))
        lesson = _teach(model, tokenizer, text, getattr(torch, dtype), steps, seed, progress) if text else None
    _save(model.to(getattr(torch, dtype)), tokenizer, directory)
    parameters = list(model.parameters())
    return MadeModel(
        directory=directory,
        architecture=type(model).__name__,
        parameters=sum(parameter.numel() for parameter in parameters),
        weight_bytes=sum(parameter.nbytes for parameter in parameters),
        sizes=sizes,
        dtype=dtype,
        seconds=time.monotonic() - start_s,
        lesson=lesson,
    )


def architectures() -> list[str]:
    """Names that ``make_model`` takes."""
    return sorted(name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name in CONFIG_MAPPING)


def _config_class(arch: str) -> Any:
    names = architectures()
    if arch not in names:
        near = difflib.get_close_matches(arch.lower(), names, n=3, cutoff=0.5) or ["llama", "qwen3", "mixtral"]
        raise MakeModelError(f"unknown architecture {arch!r}; did you mean {', '.join(near)}?")
    config_class = CONFIG_MAPPING[arch]
    if "text_config" in getattr(config_class, "sub_configs", {}):
        near = [name for name in (f"{arch}_text",) if name in names] or ["one that is text only"]
        raise MakeModelError(f"{arch} is an architecture of several parts; use {near[0]}")
    return config_class


def _settings(sizes: ModelSizes, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Values for configuration fields, under every name that some architecture has for them."""
    hidden, head, feed_forward = sizes.hidden_size, sizes.head_size, sizes.feed_forward_size
    groups = [
        (sizes.vocab_size, "vocab_size vocab_size_per_layer_input"),
        (hidden, "hidden_size word_embed_proj_dim"),
        (sizes.layers, "num_hidden_layers"),
        (sizes.heads, "num_attention_heads"),
        (sizes.key_value_heads, "num_key_value_heads num_kv_heads"),
        (feed_forward, "intermediate_size ffn_dim ffn_hidden_size n_inner intermediate_size_mlp"),
        (sizes.max_context, "max_position_embeddings original_max_position_embeddings"),
        (head, "head_dim query_pre_attn_scalar v_head_dim rotary_dim"),
        # Mixtures of experts.
        (_EXPERTS, "num_experts num_local_experts n_routed_experts"),
        (2, "num_experts_per_tok"),
        (1, "n_group topk_group first_k_dense_replace n_shared_experts"),
        (max(1, feed_forward // 2), "moe_intermediate_size shared_expert_intermediate_size"),
        # Attention through a latent vector.
        (max(1, hidden // 4), "kv_lora_rank"),
        (max(1, hidden // 2), "q_lora_rank"),
        (head, "qk_rope_head_dim qk_nope_head_dim"),
        # Weights this large make small models decided, and quick to learn.
        (hidden**-0.5, "initializer_range init_std"),
        (0.5, "logit_scale"),
        (tokenizer.pad_token_id, "pad_token_id"),
        (tokenizer.bos_token_id, "bos_token_id"),
        (tokenizer.eos_token_id, "eos_token_id"),
    ]
    return {name: value for value, names in groups for name in names.split()}


def _build(
    arch: str, config_class: Any, sizes: ModelSizes, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype
) -> Any:
    """A model with random weights that can be run."""
    fields = {field.name for field in dataclasses.fields(config_class)}
    values = {}
    for name, value in _settings(sizes, tokenizer).items():
        own_name = name if name in fields else config_class.attribute_map.get(name, name)
        if own_name in fields:
            values[own_name] = value
    if "kv_lora_rank" in fields and "num_key_value_heads" in fields:
        values["num_key_value_heads"] = sizes.heads  # latent attention expands its keys and values to every head
    try:
        with quiet_transformers(), torch.no_grad():
            with torch.device("meta"):
                _require_small(arch, AutoModelForCausalLM.from_config(config_class(**values), dtype=dtype), sizes)
            model = AutoModelForCausalLM.from_config(config_class(**values), dtype=dtype).eval()
            model(input_ids=torch.tensor([[tokenizer.bos_token_id, tokenizer.eos_token_id]]), use_cache=False)
    except MakeModelError:
        raise
    except _BUILD_ERRORS as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise MakeModelError(f"{arch} cannot be made with these sizes: {reason[-1].strip()}") from error
    return model


def _require_small(arch: str, skeleton: Any, sizes: ModelSizes) -> None:
    """Refuse an architecture whose configuration has large sizes of its own, under names unknown here."""
    hidden = sizes.hidden_size
    layer = 4 * hidden**2 + _EXPERTS * 3 * hidden * sizes.feed_forward_size
    expected = 2 * sizes.vocab_size * hidden + sizes.layers * layer
    parameters = sum(parameter.numel() for parameter in skeleton.parameters())
    if parameters > _MOST_TIMES_EXPECTED * expected:
        raise MakeModelError(
            f"{arch} cannot be made small: it has {parameters:,} parameters with these sizes; choose another one"
        )


def _teach(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    dtype: torch.dtype,
    steps: int,
    seed: int,
    progress: Progress | None,
) -> Lesson:
    try:
        return teach(model, tokenizer, text, dtype=dtype, steps=steps, seed=seed, progress=progress)
    except ValueError as error:
        raise MakeModelError(str(error)) from error


def _save(model: Any, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Write everything next to its place, then move it there."""
    part = directory.absolute().parent / f".{directory.name}.part-{uuid.uuid4().hex[:8]}"
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    try:
        part.mkdir(parents=True)
        with quiet_transformers():
            model.save_pretrained(part)
            tokenizer.save_pretrained(part)
        part.rename(directory)
    except OSError as error:
        raise MakeModelError(f"cannot write {directory}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
