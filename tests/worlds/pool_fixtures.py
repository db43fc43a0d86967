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


@pytest.fixture(scope="session")
def model_paths(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict[str, Path]]:
    """``model_paths(n)``: n models, of three architectures in turn, each with weights of its own."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from aegaeon.toy_models.make_tokenizer import make_tokenizer

    folder = tmp_path_factory.mktemp("models")
    tokenizer = make_tokenizer(VOCAB_SIZE)
    made: dict[str, Path] = {}

    def make(count: int) -> dict[str, Path]:
        while len(made) < count:
            index = len(made)
            torch.manual_seed(index)
            architecture, more = _ARCHITECTURES[index % len(_ARCHITECTURES)]
            config = AutoConfig.for_model(architecture, **_COMMON, **more)
            config.eos_token_id = tokenizer.eos_token_id
            path = folder / f"m{index}"
            AutoModelForCausalLM.from_config(config).save_pretrained(path)
            tokenizer.save_pretrained(path)
            made[path.name] = path
        return dict(list(made.items())[:count])

    return make


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
