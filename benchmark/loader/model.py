"""Models to load: one shaped like Llama in three shards, and many small ones. Their weights are noise.

Runs in the benchmark's own environment; does not know who loads them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

HIDDEN, HEADS, KV_HEADS, VOCABULARY = 2048, 32, 8, 32000
INTERMEDIATE = 6656
SHARDS = 3
_NOISE_ELEMENTS = 1 << 25


def shapes(layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes, as Transformers has them: nine tensors per layer and three more."""
    kv_size = HIDDEN // HEADS * KV_HEADS
    yield "model.embed_tokens.weight", (VOCABULARY, HIDDEN)
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", (HIDDEN,)
        yield prefix + "self_attn.q_proj.weight", (HIDDEN, HIDDEN)
        yield prefix + "self_attn.k_proj.weight", (kv_size, HIDDEN)
        yield prefix + "self_attn.v_proj.weight", (kv_size, HIDDEN)
        yield prefix + "self_attn.o_proj.weight", (HIDDEN, HIDDEN)
        yield prefix + "post_attention_layernorm.weight", (HIDDEN,)
        yield prefix + "mlp.gate_proj.weight", (INTERMEDIATE, HIDDEN)
        yield prefix + "mlp.up_proj.weight", (INTERMEDIATE, HIDDEN)
        yield prefix + "mlp.down_proj.weight", (HIDDEN, INTERMEDIATE)
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (VOCABULARY, HIDDEN)


def write_model(folder: Path, layers: int) -> None:
    """Write the model in shards with an index, unless it is there."""
    config = folder / "config.json"
    if config.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    tensors = list(shapes(layers))
    total = sum(torch.Size(shape).numel() for _, shape in tensors)
    noise = torch.randn(_NOISE_ELEMENTS, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    weight_map: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    written = number = 0
    for name, shape in tensors:
        elements = torch.Size(shape).numel()
        repeats = -(-elements // _NOISE_ELEMENTS)
        shard[name] = noise.repeat(repeats)[:elements].reshape(shape).contiguous()
        written += elements
        if written * SHARDS >= total * (number + 1):
            file = f"model-{number + 1:05}-of-{SHARDS:05}.safetensors"
            save_file(shard, folder / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(shard, file)
            shard, number = {}, number + 1
    index = {"metadata": {"total_size": 2 * total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    sizes = {"hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE, "num_hidden_layers": layers}
    heads = {"num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "vocab_size": VOCABULARY}
    kind = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16"}
    config.write_text(json.dumps(kind | sizes | heads))  # last: it says that the model is complete


def write_small_models(folder: Path, count: int, nbytes: int) -> None:
    """Write ``count`` models of ``nbytes`` bytes in 20 tensors each, one directory per model, unless they are there."""
    if (folder / f"{count - 1:03}" / "model.safetensors").exists():
        return
    noise = torch.randint(0, 256, (20, nbytes // 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    for number in range(count):
        place = folder / f"{number:03}"
        place.mkdir(parents=True, exist_ok=True)
        save_file({f"layer.{row}": noise[row].clone() for row in range(20)}, place / "model.safetensors")
