"""Models of real shapes with random weights, written to a folder: no network, and little time.

Weights are one block of random numbers again and again: what is measured does not depend on their values. The tokenizer
is one that the server accepts; nobody reads what it says.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from aegaeon.engine.step.model import Model
from aegaeon.toy_models.make_tokenizer import make_tokenizer
from aegaeon.toy_models.special_tokens import MIN_VOCAB_SIZE

_BLOCK_ELEMENTS = 1 << 24
_SPREAD = 0.02
_TOKENIZER_VOCABULARY = 2 * MIN_VOCAB_SIZE  # tokens that it does not know are no text; training one takes no time


@dataclass(frozen=True, slots=True)
class ShapedModel:
    """The shape of a published model; ``family`` is its configuration's class."""

    family: Any
    values: Mapping[str, Any]

    def config(self) -> Any:
        """The shape as a configuration of Transformers."""
        return self.family(max_position_embeddings=16384, bos_token_id=1, eos_token_id=2, **self.values)

    @property
    def weight_bytes(self) -> int:
        """Bytes of its weights in bfloat16."""
        with torch.device("meta"):
            return sum(parameter.nbytes for parameter in AutoModelForCausalLM.from_config(self.config()).parameters())


def _shape(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, vocab: int) -> dict[str, int]:
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
    }


SHAPES: Mapping[str, ShapedModel] = MappingProxyType(
    {
        "tiny": ShapedModel(LlamaConfig, _shape(128, 256, 2, 4, 4, 512)),
        "qwen2.5-0.5b": ShapedModel(Qwen2Config, _shape(896, 4864, 24, 14, 2, 151936) | {"tie_word_embeddings": True}),
        "qwen2.5-7b": ShapedModel(Qwen2Config, _shape(3584, 18944, 28, 28, 4, 152064)),
        "yi-1.5-9b": ShapedModel(LlamaConfig, _shape(4096, 11008, 48, 32, 4, 64000)),
        "llama-2-13b": ShapedModel(LlamaConfig, _shape(5120, 13824, 40, 40, 40, 32000)),
    }
)


def write_models(names: Sequence[str], folder: Path) -> Iterator[dict[str, Any]]:
    """Write models that are not there yet; a record of each."""
    for name in names:
        start_s = time.monotonic()
        size_bytes = (write_model(name, folder) / "model.safetensors").stat().st_size
        yield {"model": name, "what": "written", "bytes": size_bytes, "seconds": time.monotonic() - start_s}


def write_model(name: str, folder: Path) -> Path:
    """Write the model of that name in bfloat16, if it is not there; returns its folder. Raises ``ValueError``."""
    if name not in SHAPES:
        raise ValueError(f"there is no shape {name!r}: use --models with some of {', '.join(SHAPES)}")
    path = folder / name
    weights = path / "model.safetensors"
    if weights.exists():
        return path
    SHAPES[name].config().save_pretrained(path)
    make_tokenizer(min(_TOKENIZER_VOCABULARY, SHAPES[name].values["vocab_size"])).save_pretrained(path)
    partial = weights.with_suffix(".partial")
    _write_weights(path, partial)
    partial.rename(weights)
    return path


def _write_weights(path: Path, file: Path) -> None:
    header: dict[str, Any] = {}
    offset = 0
    for name, spec in Model(path, dtype="bfloat16").tensors.items():
        end = offset + math.prod(spec.shape) * 2
        header[name] = {"dtype": "BF16", "shape": list(spec.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 4096)  # the data begins at a page
    generator = torch.Generator().manual_seed(0)
    block = (torch.randn(_BLOCK_ELEMENTS, generator=generator) * _SPREAD).bfloat16().view(torch.uint8).numpy()
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for start in range(0, offset, block.nbytes):
            out.write(block[: min(block.nbytes, offset - start)].data)
