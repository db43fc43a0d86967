"""Binding weights: what is checked, what is kept, what is let go."""

from __future__ import annotations

import logging
import weakref
from pathlib import Path

import pytest
import torch
import transformers

from aegaeon.engine.architecture.architecture import inspect_model
from aegaeon.engine.attention.sequence_slice import SequenceSlice
from aegaeon.engine.errors import ModelError
from aegaeon.engine.step.model import Model
from aegaeon.engine.step.runner import Runner
from tests.engine.greedy import arena_of
from tests.engine.zoo import ARCHITECTURES, reference, write_config

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(ARCHITECTURES["qwen2"](), tmp_path_factory.mktemp("models") / "qwen2")


@pytest.fixture
def model(directory: Path) -> Model:
    return Model(directory)


@pytest.fixture
def weights() -> Weights:
    return dict(reference(ARCHITECTURES["qwen2"](), torch.float32).state_dict())


def logits(model: Model) -> torch.Tensor:
    shape = inspect_model(model.path, dtype=str(model.dtype).removeprefix("torch.")).kv_shape
    arena, _ = arena_of(shape.block_bytes, 1)
    return Runner(model, shape).step([SequenceSlice([3, 4, 5], 0, [0])], arena)


def test_a_missing_weight_is_named(model: Model, weights: Weights) -> None:
    del weights["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.up_proj\.weight is missing"):
        model.bind(weights)
    assert not model.bound


def test_a_wrong_shape_is_named(model: Model, weights: Weights) -> None:
    weights["model.norm.weight"] = torch.ones(63)
    with pytest.raises(ModelError, match=r"model\.norm\.weight is torch\.float32 \[63\], the model wants .* \[64\]"):
        model.bind(weights)


def test_a_wrong_dtype_is_named(model: Model, weights: Weights) -> None:
    weights["model.norm.weight"] = torch.ones(64, dtype=torch.bfloat16)
    with pytest.raises(ModelError, match=r"model\.norm\.weight is torch\.bfloat16"):
        model.bind(weights)


def test_a_failed_bind_leaves_nothing_half_bound(model: Model, weights: Weights) -> None:
    model.bind(weights)
    model.unbind()
    with pytest.raises(ModelError):
        model.bind({name: weight for name, weight in weights.items() if "norm" not in name})
    with pytest.raises(ModelError, match="no weights bound"):
        logits(model)


def test_extra_weights_are_left_alone_and_told_of_once(
    model: Model, weights: Weights, caplog: pytest.LogCaptureFixture
) -> None:
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    with caplog.at_level(logging.WARNING):
        model.bind(weights)
        model.bind(weights)
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "1 tensors are not used, first model.layers.0.self_attn.rotary_emb.inv_freq"
    ]


def test_extra_weights_that_matter_are_refused_by_name_whenever_they_come(model: Model, weights: Weights) -> None:
    model.bind(weights)
    model.unbind()
    for extra in ("model.layers.0.self_attn.o_proj.bias", "model.layers.1.mlp.up_proj.weight_scale"):
        with pytest.raises(ModelError, match=f"no place for {extra}"):
            model.bind({**weights, extra: torch.ones(64)})
        assert not model.bound
    model.bind(weights)
    assert model.bound


@pytest.mark.parametrize("kept", ["lm_head.weight", "model.embed_tokens.weight"])
def test_a_tied_weight_may_come_under_either_name(model: Model, weights: Weights, kept: str) -> None:
    model.bind(weights)
    expected = logits(model)
    other = {"lm_head.weight", "model.embed_tokens.weight"} - {kept}
    model.bind({name: weight for name, weight in weights.items() if name not in other})
    assert torch.equal(logits(model), expected)


def test_the_names_and_sizes_of_weights(model: Model, weights: Weights) -> None:
    tensors = model.tensors
    assert set(weights) - set(tensors) == {"lm_head.weight"}  # tied
    assert all(
        weights[name].shape == spec.shape and weights[name].dtype == spec.dtype for name, spec in tensors.items()
    )
    facts = inspect_model(model.path)
    assert facts.weight_bytes == sum(weights[name].nbytes for name in tensors)
    assert facts.parameters == facts.weight_bytes // 4


def test_binding_copies_nothing(model: Model, weights: Weights) -> None:
    model.bind(weights)
    before = logits(model)
    weights["model.norm.weight"].mul_(2.0)
    assert torch.allclose(logits(model), before * 2.0, rtol=1e-4)


def test_unbind_lets_go_of_the_weights(model: Model, weights: Weights) -> None:
    watched = [weakref.ref(weight.untyped_storage()) for weight in weights.values()]
    model.bind(weights)
    logits(model)
    model.unbind()
    weights.clear()
    assert not any(watcher() for watcher in watched)


def test_a_model_of_another_dtype(directory: Path) -> None:
    model = Model(directory, dtype="bfloat16")
    model.bind(
        {name: w.bfloat16() for name, w in reference(ARCHITECTURES["qwen2"](), torch.float32).state_dict().items()}
    )
    assert logits(model).dtype is torch.bfloat16


def test_few_weights_keep_their_precision(tmp_path: Path) -> None:
    """DeepSeek's routing bias stays float32 in a bfloat16 model, as Transformers loads it."""
    model = Model(write_config(ARCHITECTURES["deepseek_v3-mla"](), tmp_path / "model"), dtype="bfloat16")
    kept = [name for name, spec in model.tensors.items() if spec.dtype is torch.float32]
    assert kept == ["model.layers.1.mlp.gate.e_score_correction_bias"]


def test_length_dependent_rotary_embeddings_look_at_no_batch(tmp_path: Path) -> None:
    """The long factors are used from the first token where the context may be long, the short ones where it may not."""
    config = ARCHITECTURES["phi3-longrope"]()
    config.original_max_position_embeddings = config.rope_parameters["original_max_position_embeddings"] = 64
    path = write_config(config, tmp_path / "phi3")
    weights = reference(config, torch.float32).state_dict()
    found = []
    for limit in (64, 256):
        model = Model(path, max_context_tokens=limit)
        model.bind(weights)
        found.append(logits(model))
    assert not torch.allclose(found[0], found[1], atol=1e-3)
    long = transformers.AutoModelForCausalLM.from_config(config).eval()
    long.load_state_dict(weights)
    with torch.inference_mode():
        rotary = long.model.rotary_emb
        rotary(torch.zeros(1), torch.tensor([[255]]))
        rotary.rope_type = "default"
        expected = long(torch.tensor([[3, 4, 5]])).logits[0, -1]
    assert torch.allclose(found[1][0], expected, atol=1e-4)
