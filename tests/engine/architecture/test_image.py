"""Images hold what Transformers' modules hold, and are made only where they are needed."""

from __future__ import annotations

import json
import logging
import os
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from aegaeon.engine.architecture.image import ensure_image, needs_image, stored_tensors
from aegaeon.engine.checkpoint.safetensors_file import write_aligned
from aegaeon.engine.errors import CheckpointError

COMMON = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
SIZES: dict[str, dict[str, Any]] = {
    "llama": COMMON,
    "mixtral": {**COMMON, "num_local_experts": 4},
    "qwen2_moe": {
        **COMMON,
        "num_experts": 4,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 24,
        "decoder_sparse_step": 1,
    },
    "deepseek_v3": {
        **COMMON,
        "n_routed_experts": 4,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
        "kv_lora_rank": 8,
        "q_lora_rank": 8,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "n_group": 2,
        "topk_group": 1,
        "num_experts_per_tok": 2,
    },
    "gpt2": {
        "vocab_size": 99,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 64,
        "bos_token_id": 0,
        "eos_token_id": 1,
    },
}


def save_model(arch: str, path: Path, dtype: torch.dtype = torch.bfloat16, max_shard: str = "1GB", **sizes: Any) -> Any:
    """A random checkpoint as ``save_pretrained`` writes it, with a tokenizer file and a chat template beside it."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(arch, **{**SIZES[arch], **sizes}), dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1)
    model.save_pretrained(path, max_shard_size=max_shard)
    (path / "tokenizer.json").write_text("{}")
    (path / "chat_template.jinja").write_text("{{ messages }}")
    return model


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    """Store a checkpoint's tensors changed."""
    file = path / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    save_file(change(tensors), file, metadata={"format": "pt"})


def edit_config(path: Path, **values: Any) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **values}))


def assert_equal_to_transformers(image: Path, source: Path, dtype: torch.dtype) -> None:
    """The image can be bound, and holds bit for bit what Transformers loads from the source and from the image."""
    assert needs_image(image) is None
    for directory in (source, image):
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
        expected = dict(model.named_parameters())
        expected |= {name: value for name, value in model.state_dict().items() if name in dict(model.named_buffers())}
        with safe_open(image / "model.safetensors", framework="pt") as file:
            names = {name for name in file.keys() if not name.startswith("__pad_")}  # noqa: SIM118
            assert names == set(expected)
            for name in names:
                value = file.get_tensor(name)
                assert value.dtype == expected[name].dtype
                assert torch.equal(value, expected[name])


@pytest.mark.parametrize("max_shard", ["1GB", "10KB"], ids=["one file", "shards"])
@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_a_plain_checkpoint_needs_no_image(tmp_path: Path, arch: str, max_shard: str) -> None:
    save_model(arch, tmp_path, max_shard=max_shard)
    assert ((tmp_path / "model.safetensors.index.json").exists()) == (max_shard == "10KB")
    assert needs_image(tmp_path) is None
    assert needs_image(tmp_path, "bfloat16") is None


def test_another_float_type_needs_one(tmp_path: Path) -> None:
    save_model("llama", tmp_path / "m", torch.float16)
    assert needs_image(tmp_path / "m") is None
    reason = needs_image(tmp_path / "m", "bfloat16")
    assert reason is not None
    assert "float16, wanted is bfloat16" in reason
    image = ensure_image(tmp_path / "m", tmp_path / "cache", "bfloat16")
    assert AutoConfig.from_pretrained(image).dtype == torch.bfloat16
    assert_equal_to_transformers(image, tmp_path / "m", torch.bfloat16)
    assert ensure_image(tmp_path / "m", tmp_path / "cache", "float32") != image


@pytest.mark.parametrize("arch", ["mixtral", "qwen2_moe", "deepseek_v3"])
def test_experts_stored_one_by_one_need_one(tmp_path: Path, arch: str) -> None:
    save_model(arch, tmp_path / "m")
    assert any(".experts.3." in name for name in stored_tensors(tmp_path / "m"))
    reason = needs_image(tmp_path / "m")
    assert reason is not None
    assert "is not stored under this name" in reason
    assert_equal_to_transformers(ensure_image(tmp_path / "m", tmp_path / "cache"), tmp_path / "m", torch.bfloat16)


@pytest.mark.parametrize(("arch", "prefix"), [("gpt2", "transformer."), ("llama", "model.")])
def test_a_missing_prefix_needs_one(tmp_path: Path, arch: str, prefix: str) -> None:
    save_model(arch, tmp_path / "m")
    rewrite(tmp_path / "m", lambda tensors: {name.removeprefix(prefix): value for name, value in tensors.items()})
    reason = needs_image(tmp_path / "m")
    assert reason is not None
    assert prefix in reason
    assert_equal_to_transformers(ensure_image(tmp_path / "m", tmp_path / "cache"), tmp_path / "m", torch.bfloat16)


def test_tied_weights_stored_twice_alike_need_none(tmp_path: Path) -> None:
    save_model("llama", tmp_path, tie_word_embeddings=True)
    assert needs_image(tmp_path) is None
    rewrite(tmp_path, lambda t: {**t, "lm_head.weight": t["model.embed_tokens.weight"].clone()})
    assert needs_image(tmp_path) is None


def test_tied_weights_stored_under_the_second_name_only_need_one(tmp_path: Path) -> None:
    save_model("llama", tmp_path / "m", tie_word_embeddings=True)
    rewrite(tmp_path / "m", lambda t: {name.replace("model.embed_tokens", "lm_head"): t[name] for name in t})
    assert needs_image(tmp_path / "m") is not None
    image = ensure_image(tmp_path / "m", tmp_path / "cache")
    assert_equal_to_transformers(image, tmp_path / "m", torch.bfloat16)
    assert "lm_head.weight" not in stored_tensors(image)


def test_tied_weights_that_differ_are_untied_as_transformers_does(tmp_path: Path) -> None:
    save_model("llama", tmp_path / "m", tie_word_embeddings=True)
    rewrite(tmp_path / "m", lambda t: {**t, "lm_head.weight": t["model.embed_tokens.weight"] + 1})
    assert "should be tied" in str(needs_image(tmp_path / "m"))
    image = ensure_image(tmp_path / "m", tmp_path / "cache")
    assert AutoConfig.from_pretrained(image).tie_word_embeddings is False
    assert_equal_to_transformers(image, tmp_path / "m", torch.bfloat16)


def test_misaligned_data_needs_one(tmp_path: Path) -> None:
    save_model("llama", tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    file.write_bytes(struct.pack("<Q", length + 1) + data[8 : 8 + length] + b" " + data[8 + length :])
    assert "no multiple of its 2-byte elements" in str(needs_image(tmp_path / "m"))
    assert_equal_to_transformers(ensure_image(tmp_path / "m", tmp_path / "cache"), tmp_path / "m", torch.bfloat16)


def test_an_image_is_a_complete_model_directory(tmp_path: Path) -> None:
    save_model("llama", tmp_path / "m", torch.float16)
    (tmp_path / "m" / "old.bin").write_bytes(b"weights of another kind")
    edit_config(tmp_path / "m", my_own_key=7)
    image = ensure_image(tmp_path / "m", tmp_path / "cache", "bfloat16")
    assert sorted(file.name for file in image.iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert (image / "generation_config.json").read_text() == (tmp_path / "m" / "generation_config.json").read_text()
    assert json.loads((image / "config.json").read_text())["my_own_key"] == 7


def test_image_tensors_are_aligned_and_in_module_order(tmp_path: Path) -> None:
    save_model("qwen2_moe", tmp_path / "m")
    stored = stored_tensors(ensure_image(tmp_path / "m", tmp_path / "cache"))
    assert all(tensor.begin_byte % 256 == 0 for tensor in stored.values())
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path / "m"))
    in_order = sorted(stored, key=lambda name: stored[name].begin_byte)
    assert in_order == [name for name, _ in skeleton.named_parameters()]


def test_an_image_is_made_once_and_again_when_its_source_changes(tmp_path: Path) -> None:
    save_model("llama", tmp_path / "m", torch.float16)
    first = ensure_image(tmp_path / "m", tmp_path / "cache", "bfloat16")
    written_ns = (first / "model.safetensors").stat().st_mtime_ns
    assert ensure_image(tmp_path / "m", tmp_path / "cache", "bfloat16") == first
    assert (first / "model.safetensors").stat().st_mtime_ns == written_ns
    os.utime(tmp_path / "m" / "model.safetensors", ns=(1, 1))
    assert ensure_image(tmp_path / "m", tmp_path / "cache", "bfloat16") != first


def test_leftovers_and_damaged_images_are_replaced(tmp_path: Path) -> None:
    save_model("llama", tmp_path / "m", torch.float16)
    image = ensure_image(tmp_path / "m", tmp_path / "cache", "bfloat16")
    good = (image / "model.safetensors").read_bytes()
    (image / "model.safetensors").write_bytes(good[:-1])
    (tmp_path / "cache" / f".{image.name}.part-1234").mkdir()
    assert ensure_image(tmp_path / "m", tmp_path / "cache", "bfloat16") == image
    assert (image / "model.safetensors").read_bytes() == good
    assert [file.name for file in (tmp_path / "cache").iterdir() if ".part-" in file.name] == []


def test_two_that_want_an_image_at_once_make_it_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The lock belongs to an open file, so two threads stand for two processes."""
    caplog.set_level(logging.INFO, "aegaeon.engine.architecture.image")
    save_model("llama", tmp_path / "m", torch.float16)
    with ThreadPoolExecutor(2) as pool:
        wanted = [pool.submit(ensure_image, tmp_path / "m", tmp_path / "cache", "bfloat16") for _ in range(2)]
        images = {future.result() for future in wanted}
    assert len(images) == 1
    assert sum("is ready after" in record.message for record in caplog.records) == 1
    assert_equal_to_transformers(images.pop(), tmp_path / "m", torch.bfloat16)


def break_nothing(path: Path) -> None:
    for file in path.iterdir():
        file.unlink()


def break_weights(path: Path) -> None:
    (path / "model.safetensors").unlink()


def break_end(path: Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def break_start(path: Path) -> None:
    (path / "model.safetensors").write_bytes(b"\xff" * 64)


def break_empty(path: Path) -> None:
    (path / "model.safetensors").write_bytes(b"")


def break_shape(path: Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes().replace(b'"shape":[99,32]', b'"shape":[98,32]'))


def break_index(path: Path) -> None:
    (path / "model.safetensors").unlink()
    weight_map = {"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(weight_map))


def break_escape(path: Path) -> None:
    (path / "model.safetensors").unlink()
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "../other/model.safetensors"}}))


def break_json(path: Path) -> None:
    (path / "config.json").write_text("{")


def break_type(path: Path) -> None:
    edit_config(path, model_type="no_such_model")


def break_size(path: Path) -> None:
    edit_config(path, hidden_size="wide")


def break_quantized(path: Path) -> None:
    edit_config(path, quantization_config={"quant_method": "gptq", "bits": 4})


def break_family(path: Path) -> None:
    (path / "config.json").write_text(json.dumps({"model_type": "vit"}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_nothing, "has no config.json"),
        (break_weights, "only safetensors can be served"),
        (break_end, "truncated: .*download"),
        (break_start, "this is not a safetensors file"),
        (break_empty, "the file has 0 bytes"),
        (break_shape, "data_offsets span"),
        (break_index, "model-00001-of-00002.safetensors: this shard is missing"),
        (break_escape, "not a plain path inside the directory"),
        (break_json, "config.json"),
        (break_type, "no_such_model"),
        (break_size, "hidden_size"),
        (break_quantized, "quantized"),
        (break_family, "vit"),
    ],
)
def test_a_damaged_directory_is_a_clear_error(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    save_model("llama", tmp_path)
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        needs_image(tmp_path)


def test_what_is_missing_is_not_made_up(tmp_path: Path) -> None:
    save_model("llama", tmp_path / "m")
    rewrite(tmp_path / "m", lambda t: {name: value for name, value in t.items() if name != "lm_head.weight"})
    assert "lm_head.weight is not stored" in str(needs_image(tmp_path / "m"))
    with pytest.raises(CheckpointError, match=r"lacks 1 tensors .* lm_head\.weight"):
        ensure_image(tmp_path / "m", tmp_path / "cache")
    assert [file for file in (tmp_path / "cache").iterdir() if file.is_dir()] == []


def scaled_float8(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What quantizers write: codes, and scales beside them."""
    result = {}
    for name, value in tensors.items():
        codes = "proj" in name
        result[name] = value.to(torch.float8_e4m3fn) if codes else value
        if codes:
            result[f"{name}_scale"] = torch.ones(1)
    return result


def integers(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.to(torch.int8) if "down_proj" in name else value for name, value in tensors.items()}


def bare_float8(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.to(torch.float8_e5m2) if "embed" in name else value for name, value in tensors.items()}


def packed(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Under other names altogether, as GPTQ does."""
    return {
        **{name: value for name, value in tensors.items() if "q_proj" not in name},
        "model.layers.0.self_attn.q_proj.qweight": torch.zeros(4, 4, dtype=torch.int32),
    }


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (scaled_float8, r"self_attn\.\w+_proj|mlp\.down_proj.*float8_e4m3fn: it is quantized"),
        (integers, r"layers\.0\.mlp\.down_proj\.weight, .* as int8: it is quantized"),
        (bare_float8, r"embed_tokens\.weight as float8_e5m2: it is quantized"),
        (packed, r"q_proj\.qweight as int32: it is quantized"),
    ],
)
@pytest.mark.parametrize("dtype", [None, "float32"])
def test_codes_are_not_taken_for_numbers(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], says: str, dtype: str | None
) -> None:
    save_model("llama", tmp_path / "m")
    rewrite(tmp_path / "m", change)
    with pytest.raises(CheckpointError, match=says):
        needs_image(tmp_path / "m", dtype)
    with pytest.raises(CheckpointError, match=says):
        ensure_image(tmp_path / "m", tmp_path / "cache", dtype)
    assert [file for file in (tmp_path / "cache").iterdir() if file.is_dir()] == []


def bindable(path: Path, cache_dir: Path, dtype: str | None) -> Path:
    """The directory, or an image where it needs one."""
    return ensure_image(path, cache_dir, dtype) if needs_image(path, dtype) else path


LEFT_OVER = {
    "model.layers.0.self_attn.q_proj.bias": torch.zeros(32),  # the configuration denies it
    "model.layers.2.input_layernorm.weight": torch.ones(32),  # the configuration counts two layers
    "model.layers.1.mlp.down_proj.weight_scale": torch.ones(1),
    "model.layers.0.self_attn.q_norm.weight": torch.ones(8),
    "base_model.model.layers.0.q_proj.lora_A.weight": torch.ones(2, 32),
    "score.weight": torch.ones(2, 32),
    "model.layers.0.self_attn.bias": torch.ones(32),
}


@pytest.mark.parametrize("name", LEFT_OVER)
@pytest.mark.parametrize("dtype", [None, "float32"], ids=["as it is", "as an image"])
def test_nothing_that_matters_is_left_out(tmp_path: Path, name: str, dtype: str | None) -> None:
    save_model("llama", tmp_path / "m")
    rewrite(tmp_path / "m", lambda tensors: {**tensors, name: LEFT_OVER[name].to(torch.bfloat16)})
    with pytest.raises(CheckpointError, match=f"stores {name}, for which its configuration has no place"):
        bindable(tmp_path / "m", tmp_path / "cache", dtype)


def test_of_many_that_are_left_over_the_first_are_named(tmp_path: Path) -> None:
    save_model("llama", tmp_path)
    rewrite(tmp_path, lambda tensors: {**tensors, **{f"extra.{index}": torch.ones(1) for index in range(9)}})
    with pytest.raises(CheckpointError, match=r"stores extra\.0, extra\.1, extra\.2 and 6 more, for which"):
        needs_image(tmp_path)


HARMLESS = {
    "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
    "model.layers.0.self_attn.masked_bias": torch.tensor(-1e4),
    "model.layers.0.self_attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.bool).tril(),
    "model.embeddings.position_ids": torch.arange(8),
    "mtp.layers.0.q_proj.weight": torch.ones(32, 32),
    "vision_tower.blocks.0.weight": torch.ones(8, 8),
    "multi_modal_projector.weight": torch.ones(8, 8),
}


@pytest.mark.parametrize("dtype", [None, "float32"], ids=["as it is", "as an image"])
def test_what_is_computed_anew_or_not_for_text_may_be_left_out(tmp_path: Path, dtype: str | None) -> None:
    save_model("llama", tmp_path / "m")
    rewrite(tmp_path / "m", lambda tensors: {**tensors, **HARMLESS})
    if dtype is None:
        assert needs_image(tmp_path / "m") is None
    else:
        assert_equal_to_transformers(
            ensure_image(tmp_path / "m", tmp_path / "cache", dtype), tmp_path / "m", torch.float32
        )


def test_layers_for_drafting_may_be_left_out(tmp_path: Path) -> None:
    def add(layer: int) -> None:
        rewrite(tmp_path, lambda t: {**t, f"model.layers.{layer}.eh_proj.weight": torch.ones(2, 2)})

    save_model("deepseek_v3", tmp_path, num_nextn_predict_layers=1)
    add(2)
    assert needs_image(tmp_path) is not None  # experts one by one, and nothing else
    ensure_image(tmp_path, tmp_path / "cache")
    add(3)
    with pytest.raises(CheckpointError, match=r"layers\.3\.eh_proj"):
        ensure_image(tmp_path, tmp_path / "cache")


def test_old_masks_of_gpt2_do_no_harm(tmp_path: Path) -> None:
    save_model("gpt2", tmp_path)
    mask = torch.ones(1, 1, 64, 64, dtype=torch.uint8).tril()
    rewrite(tmp_path, lambda tensors: {**tensors, "transformer.h.0.attn.bias": mask})
    assert needs_image(tmp_path) is None


def test_numbers_beyond_float16_are_not_made_infinite(tmp_path: Path) -> None:
    save_model("llama", tmp_path / "m")
    rewrite(tmp_path / "m", lambda tensors: {**tensors, "lm_head.weight": tensors["lm_head.weight"] * 1e7})
    with pytest.raises(CheckpointError, match=r"lm_head\.weight does not fit float16; use dtype bfloat16 or float32"):
        ensure_image(tmp_path / "m", tmp_path / "cache", "float16")


def test_an_image_is_made_of_the_files_that_would_be_bound(tmp_path: Path) -> None:
    """A single file comes before an index, as in Transformers."""
    save_model("llama", tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    old = load_file(file)
    save_file(old, tmp_path / "m" / "old.safetensors", metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(old, "old.safetensors")}
    (tmp_path / "m" / "model.safetensors.index.json").write_text(json.dumps(index))
    rewrite(tmp_path / "m", lambda tensors: {name: torch.zeros_like(value) for name, value in tensors.items()})
    assert {tensor.file for tensor in stored_tensors(tmp_path / "m").values()} == {file}
    image = ensure_image(tmp_path / "m", tmp_path / "cache", "float32")
    assert_equal_to_transformers(image, tmp_path / "m", torch.float32)
    assert not any(value.any() for value in load_file(image / "model.safetensors").values())


def test_of_a_tensor_in_two_shards_the_one_that_transformers_takes_counts(tmp_path: Path) -> None:
    save_model("llama", tmp_path / "m")
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    (tmp_path / "m" / "model.safetensors").unlink()
    save_file(tensors, tmp_path / "m" / "a.safetensors", metadata={"format": "pt"})
    name = "lm_head.weight"
    save_file({name: tensors[name] + 1}, tmp_path / "m" / "b.safetensors", metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {**dict.fromkeys(tensors, "a.safetensors"), "no.such": "b.safetensors"}}
    (tmp_path / "m" / "model.safetensors.index.json").write_text(json.dumps(index))
    assert needs_image(tmp_path / "m") is None
    assert stored_tensors(tmp_path / "m")[name].file.name == "b.safetensors"
    image = ensure_image(tmp_path / "m", tmp_path / "cache", "float32")
    assert torch.equal(load_file(image / "model.safetensors")[name], (tensors[name] + 1).float())
    assert_equal_to_transformers(image, tmp_path / "m", torch.float32)


@pytest.mark.parametrize(
    ("arch", "values", "says"),
    [
        ("llama", {"vocab_size": 50}, r"lm_head\.weight as \[99, 32\], .* wants \[50, 32\] \(2 tensors do not fit"),
        ("llama", {"intermediate_size": 40}, r"has model\.layers\.0\.mlp\.down_proj\.weight as \[32, 48\]"),
        ("mixtral", {"num_local_experts": 3}, r"has model\.layers\.0\.mlp\.experts\.down_proj as \[4, 32, 48\]"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused_by_name(
    tmp_path: Path, arch: str, values: dict[str, Any], says: str
) -> None:
    save_model(arch, tmp_path / "m")
    edit_config(tmp_path / "m", **values)
    assert needs_image(tmp_path / "m") is not None
    with pytest.raises(CheckpointError, match=says):
        ensure_image(tmp_path / "m", tmp_path / "cache")


def test_experts_that_cannot_be_stacked_are_a_clear_error(tmp_path: Path) -> None:
    save_model("mixtral", tmp_path / "m")
    rewrite(tmp_path / "m", lambda tensors: {n: value for n, value in tensors.items() if "experts.1.w1" not in n})
    with pytest.raises(CheckpointError, match="belong together differ in number or shape; is one missing"):
        ensure_image(tmp_path / "m", tmp_path / "cache")


def test_unknown_float_types_and_unwritable_caches_are_clear_errors(tmp_path: Path) -> None:
    save_model("llama", tmp_path / "m")
    with pytest.raises(CheckpointError, match="use one of bfloat16"):
        needs_image(tmp_path / "m", "bf16")
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(CheckpointError, match="cannot write an image"):
        ensure_image(tmp_path / "m", tmp_path / "cache", "float32")


def test_written_files_are_plain_safetensors(tmp_path: Path) -> None:
    tensors = {
        "odd": torch.arange(7, dtype=torch.float16),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(2.5, dtype=torch.bfloat16),
        "strided": torch.arange(12.0).view(3, 4).t(),
    }
    seen: list[int] = []
    write_aligned(tmp_path / "x.safetensors", tensors, seen.append)
    read = load_file(tmp_path / "x.safetensors")
    assert {name for name in read if not name.startswith("__pad_")} == set(tensors)
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    header = stored_tensors(tmp_path / "x.safetensors")
    assert set(header) == set(tensors)
    assert all(header[name].begin_byte % 256 == 0 for name in ("odd", "scalar", "strided"))
    assert seen == sorted(seen)
    assert seen[-1] == (tmp_path / "x.safetensors").stat().st_size
