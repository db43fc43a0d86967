"""Prepacked weights: same numbers, a bounded cache, and nothing that a switch waits for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from aegaeon.engine.architecture.architecture import inspect_model
from aegaeon.engine.attention.sequence_slice import SequenceSlice
from aegaeon.engine.step.linear_groups import InputWatch
from aegaeon.engine.step.model import Model
from aegaeon.engine.step.packing import WeightPacker
from aegaeon.engine.step.runner import Runner
from tests.engine.greedy import arena_of
from tests.engine.zoo import ARCHITECTURES, reference, write_config

pytestmark = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU has no bfloat16 products"
)

AMPLE = 1 << 24
MANY_STEPS = 40


def model_of(folder: Path, name: str = "llama", dtype: str = "bfloat16") -> Model:
    model = Model(write_config(ARCHITECTURES[name](), folder / name), dtype=dtype)
    weights = reference(ARCHITECTURES[name](), getattr(torch, dtype)).state_dict()
    model.bind(weights)
    return model


def steps(model: Model, packer: WeightPacker | None, count: int = MANY_STEPS) -> torch.Tensor:
    """The logits of the last of some equal steps."""
    shape = inspect_model(model.path, dtype=str(model.dtype).removeprefix("torch.")).kv_shape
    arena, _ = arena_of(shape.block_bytes, 1)
    runner = Runner(model, shape, packer)
    for _ in range(count):
        logits = runner.step([SequenceSlice([3, 4, 5], 0, [0])], arena)
    return logits


@pytest.mark.parametrize("name", ["llama", "qwen2", "phi"])  # phi has biases, qwen2 tied weights
def test_packed_weights_compute_the_same(tmp_path: Path, name: str) -> None:
    model, packer = model_of(tmp_path, name), WeightPacker(AMPLE)
    plain = steps(model, None, 1)
    assert torch.allclose(steps(model, packer), plain, atol=0.02 * plain.abs().max().item())
    assert packer.packed_bytes(model) > 0


def test_nothing_is_packed_at_first(tmp_path: Path) -> None:
    model, packer = model_of(tmp_path), WeightPacker(AMPLE)
    steps(model, packer, 3)
    assert packer.used_bytes == 0


def test_packed_weights_outlive_unbinding(tmp_path: Path) -> None:
    model, packer = model_of(tmp_path), WeightPacker(AMPLE)
    expected = steps(model, packer)
    weights = reference(ARCHITECTURES["llama"](), torch.bfloat16).state_dict()
    model.unbind()
    packed = packer.packed_bytes(model)
    model.bind(weights)
    assert torch.equal(steps(model, packer, 1), expected)
    assert packer.packed_bytes(model) == packed


def packed_size(model: Model) -> int:
    packer = WeightPacker(AMPLE)
    steps(model, packer)
    size_bytes = packer.packed_bytes(model)
    packer.forget(model)
    return size_bytes


def test_models_that_take_turns_leave_each_other_alone(tmp_path: Path) -> None:
    first, second = model_of(tmp_path / "a"), model_of(tmp_path / "b")
    size_bytes = packed_size(first)
    packer = WeightPacker(size_bytes * 3 // 2)
    for _ in range(5):
        steps(first, packer, 10)
        steps(second, packer, 10)
    assert packer.packed_bytes(first) + packer.packed_bytes(second) > size_bytes
    assert packer.used_bytes <= size_bytes * 3 // 2


def test_the_budget_holds_and_the_oldest_goes(tmp_path: Path) -> None:
    first, second = model_of(tmp_path / "a"), model_of(tmp_path / "b")
    budget = packed_size(first) * 3 // 2
    packer = WeightPacker(budget, stale_steps=5)
    expected = steps(first, packer)
    steps(second, packer)
    assert packer.packed_bytes(first) == 0 < packer.packed_bytes(second)
    assert packer.used_bytes <= budget
    assert torch.allclose(steps(first, None, 1), expected, atol=0.02 * expected.abs().max().item())


def test_groups_are_layers_that_read_the_same_input(tmp_path: Path) -> None:
    model = model_of(tmp_path)
    names = {module: name.rpartition(".")[2] for name, module in model.modules.named_modules()}
    watch = InputWatch(model.modules)
    watched = steps(model, None, 1)
    groups = [[names[layer] for layer in group] for group in watch.finish()]
    one_layer = [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]
    assert groups == [*one_layer, *one_layer, ["lm_head"]]
    assert torch.equal(steps(model, None, 1), watched)


def test_a_model_beyond_the_budget_is_packed_in_part(tmp_path: Path) -> None:
    model, packer = model_of(tmp_path), WeightPacker(60_000)
    plain = steps(model, None, 1)
    assert torch.allclose(steps(model, packer), plain, atol=0.02 * plain.abs().max().item())
    assert 0 < packer.used_bytes <= 60_000


def test_float32_is_left_alone(tmp_path: Path) -> None:
    model, packer = model_of(tmp_path, dtype="float32"), WeightPacker(AMPLE)
    steps(model, packer)
    assert packer.used_bytes == 0
