"""Small real models, and whole nodes within the test's own process (the same code as in a pool, without Ray).

Torch is imported by those who use them: other tests start at once.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest

from aegaeon.core.config import InstanceConfig, ModelConfig, PoolConfig
from aegaeon.core.instance import Role
from aegaeon.core.slo import Slo

if TYPE_CHECKING:
    from tests.worlds.in_process_pool import InProcessPool

VOCAB_SIZE = 320
_COMMON = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.15,
    "dtype": "float32",
}
_ARCHITECTURES: tuple[tuple[str, dict[str, int]], ...] = (
    ("llama", {}),
    ("qwen3", {"head_dim": 16}),
    ("gemma2", {"head_dim": 16, "sliding_window": 32, "query_pre_attn_scalar": 16}),
)


_MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 4, "mamba_chunk_size": 16}
_HYBRIDS: dict[str, tuple[str, dict[str, Any]]] = {
    "lfm2": ("lfm2", {"layer_types": ["conv", "full_attention"]}),
    "bamba": ("bamba", {"num_hidden_layers": 3, "attn_layer_indices": [1], **_MAMBA2}),
    "jamba": (
        "jamba",
        {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 1, "mamba_d_state": 8, "mamba_dt_rank": 4},
    ),
}


@pytest.fixture(scope="session")
def model_paths(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict[str, Path]]:
    """``model_paths(n)``: n models, of three architectures in turn, each with weights of its own."""
    folder = tmp_path_factory.mktemp("models")
    made: dict[str, Path] = {}

    def make(count: int) -> dict[str, Path]:
        while len(made) < count:
            index = len(made)
            made[f"m{index}"] = _make(folder / f"m{index}", index, *_ARCHITECTURES[index % len(_ARCHITECTURES)])
        return dict(list(made.items())[:count])

    return make


@pytest.fixture(scope="session")
def hybrid_paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models with recurrent or convolution layers, by name."""
    folder = tmp_path_factory.mktemp("hybrids")
    return {name: _make(folder / name, 0, *kind) for name, kind in _HYBRIDS.items()}


def _make(path: Path, seed: int, architecture: str, more: Mapping[str, Any]) -> Path:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from aegaeon.toy_models.make_tokenizer import make_tokenizer

    tokenizer = make_tokenizer(VOCAB_SIZE)
    torch.manual_seed(seed)
    config = AutoConfig.for_model(architecture, **{**_COMMON, **more})
    config.eos_token_id = tokenizer.eos_token_id
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def pool(
    tmp_path: Path, model_paths: Callable[[int], dict[str, Path]]
) -> Callable[..., contextlib.AbstractAsyncContextManager[InProcessPool]]:
    """``pool(models, **PoolConfig fields)``: a running in-process pool."""
    from tests.worlds.in_process_pool import InProcessPool

    @contextlib.asynccontextmanager
    async def start(
        models: int | Sequence[str] = 2,
        *,
        instances: tuple[InstanceConfig, ...] = (InstanceConfig(Role.MIXED, 1),),
        kv_cache_bytes: int = 16 << 20,
        weight_cache_bytes: int = 64 << 20,
        extra: Mapping[str, Path] = MappingProxyType({}),
        slos: Mapping[str, Slo] = MappingProxyType({}),
        **fields: Any,
    ) -> AsyncIterator[InProcessPool]:
        paths = model_paths(models if isinstance(models, int) else 8)
        names = tuple(paths) if isinstance(models, int) else models
        served = {**{name: paths[name] for name in names}, **extra}
        config = PoolConfig(
            models=tuple(ModelConfig(name, path, slos.get(name, Slo())) for name, path in served.items()),
            instances=instances,
            **{"device": "cpu", "slab_bytes": 1 << 20, "instance_timeout_s": 3600.0, **fields},
        )
        async with InProcessPool(config, kv_cache_bytes, weight_cache_bytes, tmp_path) as running:
            yield running

    return start
