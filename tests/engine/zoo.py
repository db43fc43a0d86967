"""Tiny random models of many architectures, written to disk once a session, and what ``generate()`` makes of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as t
from safetensors.torch import save_file
from torch import nn

VOCAB = 199
WINDOW = 20
PROMPT_LENGTHS = (5, 41, 18)
NEW_TOKENS = 14

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
_EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_MLA: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 12,
    "moe_intermediate_size": 32,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
_MAMBA2: dict[str, Any] = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_chunk_size": 16}
_DELTA: dict[str, Any] = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "num_hidden_layers": 4,
}
_KIMI: dict[str, Any] = {**_MLA, "num_local_experts": 4, "layer_types": ["linear_attention", "full_attention"]}
_SHARED_ATTENTION = ["linear_attention", "hybrid", "linear_attention", "hybrid"]
_MAMBA: dict[str, Any] = {
    key: _COMMON[key]
    for key in ("vocab_size", "hidden_size", "num_hidden_layers", "eos_token_id", "max_position_embeddings")
}
_MIXED_LAYERS = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]


def _of(config_class: Any, **values: Any) -> Callable[[], Any]:
    return lambda: config_class(**{**_COMMON, **values})


def _rope(**values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 10000.0, **values}}


ARCHITECTURES: dict[str, Callable[[], Any]] = {
    "llama": _of(t.LlamaConfig),
    "llama3-rope": _of(
        t.LlamaConfig,
        **_rope(
            rope_type="llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=32,
        ),
    ),
    "llama-yarn": _of(t.LlamaConfig, **_rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=64)),
    "llama-dynamic": _of(t.LlamaConfig, **_rope(rope_type="dynamic", factor=2.0)),
    "qwen2": _of(t.Qwen2Config, tie_word_embeddings=True),
    "qwen3": _of(t.Qwen3Config, head_dim=24),
    "mistral-window": _of(t.MistralConfig, sliding_window=WINDOW),
    "gemma": _of(t.GemmaConfig, head_dim=16),
    "gemma2-cap-window": _of(t.Gemma2Config, head_dim=16, sliding_window=WINDOW, attn_logit_softcapping=5.0),
    "gemma3-window": _of(
        t.Gemma3TextConfig, head_dim=16, sliding_window=WINDOW, num_hidden_layers=4, layer_types=_MIXED_LAYERS
    ),
    "gemma3n-shared-kv": _of(
        t.Gemma3nTextConfig,
        head_dim=16,
        sliding_window=WINDOW,
        num_hidden_layers=10,
        num_kv_shared_layers=5,
        vocab_size_per_layer_input=VOCAB,
        hidden_size_per_layer_input=8,
        laurel_rank=8,
        activation_sparsity_pattern=[0.0] * 10,
    ),
    "gemma4-mixed-heads": _of(
        t.Gemma4TextConfig,
        head_dim=16,
        global_head_dim=32,
        sliding_window=WINDOW,
        num_hidden_layers=6,
        vocab_size_per_layer_input=VOCAB,
        hidden_size_per_layer_input=16,
    ),
    "phi": _of(t.PhiConfig, num_key_value_heads=4),
    "phi3-longrope": _of(
        t.Phi3Config,
        original_max_position_embeddings=256,
        **_rope(
            rope_type="longrope",
            short_factor=[1.0] * 8,
            long_factor=[4.0] * 8,
            original_max_position_embeddings=256,
        ),
    ),
    "olmo": _of(t.OlmoConfig),
    "olmo2": _of(t.Olmo2Config),
    "olmo3-window": _of(t.Olmo3Config, sliding_window=WINDOW, num_hidden_layers=4, layer_types=_MIXED_LAYERS),
    "granite": _of(t.GraniteConfig, logits_scaling=4.0, residual_multiplier=0.5),
    "cohere": _of(t.CohereConfig),
    "cohere2-window": _of(t.Cohere2Config, sliding_window=WINDOW, num_hidden_layers=4, layer_types=_MIXED_LAYERS),
    "glm4": _of(t.Glm4Config, head_dim=16),
    "starcoder2": _of(t.Starcoder2Config, sliding_window=WINDOW),
    "smollm3": _of(t.SmolLM3Config),
    "gpt_neox": _of(t.GPTNeoXConfig),
    "gpt2": lambda: t.GPT2Config(vocab_size=VOCAB, n_embd=64, n_layer=2, n_head=4, n_positions=256, eos_token_id=None),
    "opt": _of(t.OPTConfig, ffn_dim=96, word_embed_proj_dim=64),
    "mixtral": _of(t.MixtralConfig, num_local_experts=4, num_experts_per_tok=2),
    "qwen2_moe": _of(t.Qwen2MoeConfig, **_EXPERTS, shared_expert_intermediate_size=32),
    "qwen3_moe": _of(t.Qwen3MoeConfig, **_EXPERTS, head_dim=16),
    "glm4_moe": _of(
        t.Glm4MoeConfig,
        moe_intermediate_size=32,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_shared_experts=1,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
    ),
    "olmoe": _of(t.OlmoeConfig, num_experts=4, num_experts_per_tok=2),
    "gpt_oss-sinks": _of(
        t.GptOssConfig, head_dim=16, num_local_experts=4, num_experts_per_tok=2, sliding_window=WINDOW
    ),
    "deepseek_v2-mla": _of(t.DeepseekV2Config, **_MLA),
    "deepseek_v3-mla": _of(t.DeepseekV3Config, **_MLA),
    "llama4-chunks": _of(
        t.Llama4TextConfig,
        head_dim=16,
        intermediate_size_mlp=96,
        num_local_experts=4,
        num_hidden_layers=4,
        attention_chunk_size=16,
        no_rope_layers=[1, 1, 1, 0],
    ),
}

STATEFUL: dict[str, Callable[[], Any]] = {
    "lfm2": _of(t.Lfm2Config, num_hidden_layers=3, layer_types=["conv", "full_attention", "conv"]),
    "lfm2_moe": _of(
        t.Lfm2MoeConfig,
        num_hidden_layers=3,
        num_dense_layers=1,
        layer_types=["conv", "full_attention", "conv"],
        **_EXPERTS,
    ),
    "lfm3-window": _of(
        t.Lfm3Config,
        num_hidden_layers=3,
        head_dim=16,
        sliding_window=WINDOW,
        layer_types=["conv", "sliding_attention", "full_attention"],
    ),
    "bamba": _of(t.BambaConfig, num_hidden_layers=3, attn_layer_indices=[1], **_MAMBA2),
    "granite4": _of(
        t.GraniteMoeHybridConfig,
        num_hidden_layers=3,
        layer_types=["linear_attention", "full_attention", "linear_attention"],
        shared_intermediate_size=32,
        num_local_experts=4,
        num_experts_per_tok=2,
        **_MAMBA2,
    ),
    "jamba": _of(
        t.JambaConfig,
        num_hidden_layers=4,
        attn_layer_period=2,
        attn_layer_offset=1,
        num_experts=4,
        num_experts_per_tok=2,
        mamba_d_state=8,
        mamba_dt_rank=4,
    ),
    "falcon_h1": _of(t.FalconH1Config, head_dim=16, mamba_d_ssm=128, **_MAMBA2),
    "nemotron_h": _of(
        t.NemotronHConfig,
        num_hidden_layers=4,
        layers_block_type=["linear_attention", "moe", "full_attention", "mlp"],
        head_dim=16,
        ssm_state_size=16,
        mamba_num_heads=8,
        mamba_head_dim=16,
        n_groups=2,
        chunk_size=16,
        n_routed_experts=4,
        moe_intermediate_size=32,
        moe_shared_expert_intermediate_size=32,
    ),
    "qwen3_next": _of(t.Qwen3NextConfig, head_dim=16, shared_expert_intermediate_size=32, **_EXPERTS, **_DELTA),
    "qwen3_5": _of(t.Qwen3_5TextConfig, head_dim=16, **_DELTA),
    "qwen3_5_moe": _of(t.Qwen3_5MoeTextConfig, head_dim=16, shared_expert_intermediate_size=32, **_EXPERTS, **_DELTA),
    "olmo_hybrid": _of(t.OlmoHybridConfig, **_DELTA),
    "zamba": _of(
        t.ZambaConfig,
        num_hidden_layers=4,
        num_key_value_heads=4,
        layers_block_type=_SHARED_ATTENTION,
        mamba_d_state=8,
        mamba_dt_rank=4,
    ),
    "zamba2": _of(
        t.Zamba2Config,
        num_hidden_layers=4,
        num_key_value_heads=4,
        layers_block_type=_SHARED_ATTENTION,
        mamba_d_state=16,
        n_mamba_heads=8,
        chunk_size=16,
    ),
    "kimi_linear": _of(t.KimiLinearConfig, **{**_KIMI, "q_lora_rank": None}, linear_head_dim=16, linear_num_heads=4),
    "bailing_hybrid": _of(t.BailingHybridConfig, **_KIMI, head_dim=16),
    "mamba": lambda: t.MambaConfig(**_MAMBA, state_size=8, time_step_rank=4),
    "mamba2": lambda: t.Mamba2Config(**_MAMBA, state_size=16, num_heads=8, head_dim=16, n_groups=2, chunk_size=16),
    "falcon_mamba": lambda: t.FalconMambaConfig(**_MAMBA, state_size=8, time_step_rank=4),
}
"""Models with recurrent or convolution layers, with and without attention beside them."""

ARCHITECTURES |= STATEFUL


@dataclass(frozen=True)
class TinyModel:
    """A model on disk (configuration and a placeholder for weights), its weights, and prompts with their outputs."""

    path: Path
    weights: dict[str, torch.Tensor]
    prompts: Sequence[Sequence[int]]
    outputs: Sequence[Sequence[int]]


Zoo = Callable[[str], TinyModel]


def build(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> TinyModel:
    """Make the model, write its configuration, and let ``generate()`` continue some prompts greedily."""
    config = ARCHITECTURES[name]()
    path = write_config(config, folder / name)
    model = reference(config, dtype)
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(2, VOCAB, (length,), generator=generator).tolist() for length in PROMPT_LENGTHS]
    outputs = [generate(model, prompt) for prompt in prompts]
    return TinyModel(path, model.state_dict(), prompts, outputs)


def write_config(config: Any, path: Path) -> Path:
    """A model directory without weights: a file that holds no tensors."""
    config.save_pretrained(path)
    save_file({}, path / "model.safetensors")
    return path


def reference(config: Any, dtype: torch.dtype) -> Any:
    """Transformers' model with random weights that make it say many different things."""
    model_class = t.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    model = model_class._from_config(type(config)(**config.to_dict()), dtype=dtype).eval()
    generator = torch.Generator().manual_seed(0)
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    for name, parameter in model.named_parameters():
        if id(parameter) in embeddings:
            scale = 0.005  # where output embeddings are tied, an input token should not just repeat itself
        elif parameter.dim() > 1:
            scale = 0.5
        else:
            scale = 0.1 if name.endswith("bias") else 0.8
        mean = parameter.data.mean().round() if parameter.dim() == 1 else 0.0  # norms begin at 1, or at 0 for 1 + w
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * scale + mean)
    return model


def generate(model: Any, prompt: Sequence[int], new_tokens: int = NEW_TOKENS) -> list[int]:
    """Transformers' greedy continuation."""
    ids = torch.tensor([prompt])
    settings = t.GenerationConfig(max_new_tokens=new_tokens, do_sample=False, pad_token_id=0, eos_token_id=None)
    with torch.inference_mode():
        output = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    return output[0, len(prompt) :].tolist()
