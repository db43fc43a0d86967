"""What the gate takes, what it finds out, and what it refuses with which reason."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t
from safetensors.torch import save_file

from aegaeon.core.kv_shape import LayerKv
from aegaeon.engine.architecture import dry_run
from aegaeon.engine.architecture.architecture import check_layer_counts, inspect_model
from aegaeon.engine.architecture.skeleton import build_skeleton
from aegaeon.engine.attention.attention import AttentionContractError
from aegaeon.engine.errors import ModelError, UnsupportedModelError
from aegaeon.engine.prepared.engine_facts import EngineFacts
from tests.engine.zoo import ARCHITECTURES, write_config


def inspect(config: Any, folder: Path, **options: Any) -> EngineFacts:
    return inspect_model(write_config(config, folder / "model"), **options)


def refusal(config: Any, folder: Path, **options: Any) -> str:
    with pytest.raises(UnsupportedModelError) as caught:
        inspect(config, folder, **options)
    assert str(folder / "model") in str(caught.value)
    assert caught.value.architecture
    assert caught.value.architecture in str(caught.value)
    return caught.value.reason


SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 199}

REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "falcon": (lambda: t.FalconConfig(**SMALL), "does not go through Transformers' attention interface"),
    "bloom": (lambda: t.BloomConfig(hidden_size=64, n_layer=2, n_head=4), "attention interface"),
    "mpt": (lambda: t.MptConfig(d_model=64, n_layers=2, n_heads=4), "attention interface"),
    "stablelm": (lambda: t.StableLmConfig(**SMALL), "attention interface"),
    "recurrent_gemma": (lambda: t.RecurrentGemmaConfig(**SMALL), "a forward pass of its modules fails"),
    "rwkv": (lambda: t.RwkvConfig(hidden_size=64, num_hidden_layers=2), "attention interface"),
    "minimax": (lambda: t.MiniMaxConfig(**SMALL), "uses cache of its own"),
    "deepseek_v4": (lambda: t.DeepseekV4Config(**SMALL), "more than keys, values and states"),
    "t5": (lambda: t.T5Config(d_model=64, num_layers=2), "encoder-decoder"),
    "bart": (lambda: t.BartConfig(d_model=64, encoder_layers=1, decoder_layers=1), "encoder-decoder"),
    "bert": (lambda: t.BertConfig(**SMALL, intermediate_size=64), "not causal"),
    "vit": (lambda: t.ViTConfig(hidden_size=64, num_hidden_layers=2), "not a decoder-only causal language model"),
    "nemotron": (
        lambda: t.NemotronConfig(**SMALL, intermediate_size=64, num_key_value_heads=4),
        "do not pass keyword arguments on",
    ),
    "moshi": (lambda: t.MoshiConfig(**SMALL, sliding_window=16, head_dim=16), "masks its attention"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_a_reason(name: str, tmp_path: Path) -> None:
    make, reason = REFUSED[name]
    assert reason in refusal(make(), tmp_path)


# The classes above say of themselves what they are. Classes that do not are found out by running two tokens:


def skeleton() -> Any:
    dry_run.register()
    return build_skeleton(Path("model"), ARCHITECTURES["llama"](), torch.float32, dry_run.IMPLEMENTATION)


def test_a_layer_that_attends_by_itself_is_found_out() -> None:
    model = skeleton()
    model.model.layers[1].self_attn.forward = lambda hidden_states, **_: (hidden_states, None)
    with pytest.raises(AttentionContractError, match=r"layers \[1\] of 2 do not attend through the interface"):
        dry_run.cached_layers(model)


def test_a_model_that_always_attends_by_itself_is_found_out() -> None:
    model = skeleton()
    for layer in model.model.layers:
        layer.self_attn.forward = lambda hidden_states, **_: (hidden_states, None)
    with pytest.raises(AttentionContractError, match="do not use Transformers' attention interface"):
        dry_run.cached_layers(model)


def wrap(model: Any, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the keyword arguments that the first layer's attention gets."""
    attention = model.model.layers[0].self_attn
    forward = attention.forward

    def changed(**kwargs: Any) -> Any:
        change(kwargs)
        return forward(**kwargs)

    attention.forward = changed


def test_dropped_keyword_arguments_are_found_out() -> None:
    model = skeleton()
    wrap(model, lambda kwargs: kwargs.pop("paged"))
    with pytest.raises(AttentionContractError, match="do not pass keyword arguments on"):
        dry_run.cached_layers(model)


def test_an_own_mask_is_found_out() -> None:
    model = skeleton()
    wrap(model, lambda kwargs: kwargs.update(attention_mask=torch.zeros(1, 1, 2, 2, device="meta")))
    with pytest.raises(AttentionContractError, match="masks its attention in a way of its own"):
        dry_run.cached_layers(model)


def test_a_window_that_only_the_mask_knows_is_found_out() -> None:
    model = skeleton()
    model.model.layers[0].self_attn.sliding_window = 8

    def forget(kwargs: dict[str, Any]) -> None:
        kwargs["sliding_window"] = 8

    wrap(model, forget)
    with pytest.raises(AttentionContractError, match="layer 0 masks its attention in a way that is not supported"):
        dry_run.cached_layers(model)


def test_unknown_tensors_for_attention_are_found_out() -> None:
    model = skeleton()
    wrap(model, lambda kwargs: kwargs.update(position_bias=torch.zeros(1, device="meta")))
    with pytest.raises(AttentionContractError, match="attends with 'position_bias'"):
        dry_run.cached_layers(model)


def test_ignored_positions_are_found_out() -> None:
    model = skeleton()
    rotary = model.model.rotary_emb
    model.model.rotary_emb.forward = lambda x, position_ids: type(rotary).forward(
        rotary, x, torch.zeros(1, 2, device="meta")
    )
    with pytest.raises(AttentionContractError, match="ignores the positions"):
        dry_run.cached_layers(model)


def test_state_beside_keys_and_values_is_found_out() -> None:
    model = skeleton()
    wrap(model, lambda kwargs: kwargs["past_key_values"].update_conv_state(torch.zeros(1, device="meta"), 0))
    with pytest.raises(AttentionContractError, match="recurrent or convolution state"):
        dry_run.cached_layers(model)


# Facts


def test_facts_of_a_grouped_model(tmp_path: Path) -> None:
    config = ARCHITECTURES["llama"]()
    config.dtype = "bfloat16"
    facts = inspect(config, tmp_path)
    assert facts.architecture == "LlamaForCausalLM"
    assert facts.kv_shape.layers == (LayerKv(2, 16, 16),) * 2
    assert (facts.kv_shape.element_bytes, facts.kv_shape.block_tokens) == (2, 16)
    assert (facts.dtype, facts.vocab_size, facts.max_context_tokens) == ("bfloat16", 199, 256)
    assert facts.weight_bytes == 2 * facts.parameters
    assert facts.eos_token_ids == ()


def test_expanded_latent_attention(tmp_path: Path) -> None:
    assert inspect(ARCHITECTURES["deepseek_v3-mla"](), tmp_path).kv_shape.layers == (LayerKv(4, 24, 12),) * 2


def test_float32_where_nothing_is_said(tmp_path: Path) -> None:
    assert inspect(ARCHITECTURES["llama"](), tmp_path).dtype == "float32"


def test_options_win(tmp_path: Path) -> None:
    facts = inspect(ARCHITECTURES["llama"](), tmp_path, dtype="float16", max_context_tokens=99, block_tokens=8)
    assert (facts.dtype, facts.max_context_tokens, facts.kv_shape.block_tokens) == ("float16", 99, 8)


@pytest.mark.parametrize(("generation", "expected"), [(None, (7,)), ({"eos_token_id": [3, 4]}, (3, 4, 7)), ({}, (7,))])
def test_a_text_ends_with_the_tokens_of_both_configurations(
    tmp_path: Path, generation: dict[str, Any] | None, expected: tuple[int, ...]
) -> None:
    config = ARCHITECTURES["llama"]()
    config.eos_token_id = 7
    path = write_config(config, tmp_path / "model")
    if generation is not None:
        (path / "generation_config.json").write_text(json.dumps(generation))
    assert inspect_model(path).eos_token_ids == expected


@pytest.mark.parametrize(
    ("said", "generation", "expected"),
    [
        ({}, {"eos_token_id": 5}, (5,)),  # the 2 that a Llama's class has for a default is of another vocabulary
        ({}, None, (2,)),
        ({"eos_token_id": 9}, {"eos_token_id": [9, 5, 9]}, (9, 5)),
        ({"eos_token_id": [1000, -1, 8]}, {"eos_token_id": 199}, (8,)),
        ({"eos_token_id": None}, {"eos_token_id": "</s>"}, ()),
    ],
)
def test_ids_that_end_a_text_are_those_of_the_vocabulary(
    tmp_path: Path, said: dict[str, Any], generation: dict[str, Any] | None, expected: tuple[int, ...]
) -> None:
    path = write_config(ARCHITECTURES["llama"](), tmp_path / "model")
    values = json.loads((path / "config.json").read_text())
    values.pop("eos_token_id", None)
    (path / "config.json").write_text(json.dumps(values | said))
    if generation is not None:
        (path / "generation_config.json").write_text(json.dumps(generation))
    facts = inspect_model(path)
    assert facts.eos_token_ids == expected
    named = str((said, generation))
    for wrong in ("1000", "-1", "199", "</s>"):
        assert any(f"eos_token_id {wrong!r}" in note or f"eos_token_id {wrong} " in note for note in facts.notes) == (
            wrong in named
        )


def test_sampling_defaults_are_those_of_the_generation_configuration(tmp_path: Path) -> None:
    path = write_config(ARCHITECTURES["llama"](), tmp_path / "model")
    assert inspect_model(path).sampling_defaults == {}
    said = {"temperature": 0.6, "top_k": -1, "top_p": 0.9, "min_p": None, "do_sample": True, "max_new_tokens": 7}
    (path / "generation_config.json").write_text(json.dumps(said))
    facts = inspect_model(path)
    assert facts.sampling_defaults == {"temperature": 0.6, "top_k": 0, "top_p": 0.9, "max_new_tokens": 7}
    assert facts.notes == ()


def test_sampling_defaults_that_cannot_be_are_left_out_with_a_note(tmp_path: Path) -> None:
    path = write_config(ARCHITECTURES["llama"](), tmp_path / "model")
    text = (
        '{"temperature": -1, "top_p": NaN, "top_k": 2.5, "repetition_penalty": true, "max_new_tokens": 0, "min_p": "x"}'
    )
    (path / "generation_config.json").write_text(text)
    facts = inspect_model(path)
    assert facts.sampling_defaults == {}
    keys = ("temperature", "top_p", "top_k", "repetition_penalty", "max_new_tokens", "min_p")
    assert all(any(note.startswith(f"{key} of generation_config") for note in facts.notes) for key in keys)


ORIGINAL = {"original_max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("rope", "usual", "most"),
    [
        ({}, 64, 64),
        ({"rope_type": "yarn", "factor": 4.0, **ORIGINAL}, 256, 256),
        ({"type": "yarn", "factor": 2.5, **ORIGINAL}, 160, 160),
        ({"rope_type": "linear", "factor": 4.0}, 64, 256),
        ({"rope_type": "dynamic", "factor": 4.0}, 64, 256),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}, 64, 64),
    ],
)
def test_scaled_positions_reach_to_factor_times_the_original_context(
    tmp_path: Path, rope: dict[str, Any], usual: int, most: int
) -> None:
    path = write_config(ARCHITECTURES["llama"](), tmp_path / "model")
    values = json.loads((path / "config.json").read_text())
    values.pop("rope_parameters", None)
    values |= {"max_position_embeddings": 64} | ({"rope_scaling": rope} if rope else {})
    (path / "config.json").write_text(json.dumps(values))
    assert inspect_model(path).max_context_tokens == usual
    assert inspect_model(path, max_context_tokens=most).max_context_tokens == most
    with pytest.raises(UnsupportedModelError, match=f"between 1 and {most}, got {most + 1}"):
        inspect_model(path, max_context_tokens=most + 1)


@pytest.mark.parametrize("values", [{"num_hidden_layers": 4000}, {"text_config": {"n_layer": 10**9}}])
def test_more_layers_than_tensors_are_refused_before_anything_is_built(tmp_path: Path, values: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModelError, match=r"says \w+ \d+, its files hold 20 tensors"):
        check_layer_counts(tmp_path, values, 20)
    check_layer_counts(tmp_path, {"num_hidden_layers": 2, "vision_config": {"num_hidden_layers": 20}}, 20)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_a_type_that_is_not_said_is_that_of_the_weights(tmp_path: Path, stored: torch.dtype) -> None:
    path = write_config(ARCHITECTURES["llama"](), tmp_path / "model")
    save_file(
        {"a.codes": torch.zeros(2, dtype=torch.uint8), "b": torch.zeros(2, dtype=stored), "c": torch.zeros(2)},
        path / "model.safetensors",
    )
    assert inspect_model(path).dtype == str(stored).removeprefix("torch.")
    assert inspect_model(path, dtype="float32").dtype == "float32"
    edit = json.loads((path / "config.json").read_text()) | {"torch_dtype": "float32"}
    (path / "config.json").write_text(json.dumps(edit))
    assert inspect_model(path).dtype == "float32"


@pytest.mark.parametrize("nested", ['{"a":' * 20_000 + "1" + "}" * 20_000, "[" * 10**6])
def test_a_configuration_nested_without_end(tmp_path: Path, nested: str) -> None:
    (tmp_path / "config.json").write_text(nested)
    with pytest.raises(UnsupportedModelError, match=r"config\.json is not usable: its JSON is nested too deeply"):
        inspect_model(tmp_path)


@pytest.mark.parametrize(
    ("values", "file"),
    [
        ({"quantization_config": {"quant_method": "fp8"}}, None),
        ({"compression_config": {"format": "int-quantized"}}, None),
        ({"quantization": {"group_size": 64, "bits": 4}}, None),
        ({"text_config": {"quantization_config": {"load_in_4bit": True}}}, None),
        ({}, "hf_quant_config.json"),
        ({}, "quantize_config.json"),
        ({}, "quant_config.json"),
    ],
)
def test_quantization_is_seen_wherever_it_is_said(tmp_path: Path, values: dict[str, Any], file: str | None) -> None:
    path = write_config(ARCHITECTURES["llama"](), tmp_path / "model")
    (path / "config.json").write_text(json.dumps(json.loads((path / "config.json").read_text()) | values))
    if file is not None:
        (path / file).write_text("{}")
    with pytest.raises(UnsupportedModelError, match="it is quantized"):
        inspect_model(path)


def test_a_gate_passes_in_no_time_and_makes_no_weights(tmp_path: Path) -> None:
    """A model of 70 billion parameters would not fit this machine."""
    config = t.LlamaConfig(
        hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8
    )
    facts = inspect(config, tmp_path, dtype="bfloat16")
    assert facts.parameters > 65e9
    assert facts.kv_shape.token_bytes == 80 * 2 * 8 * 128 * 2


# Directories that are no models


def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"missing: it is no model directory, it has no config\.json"):
        inspect_model(tmp_path / "missing")


@pytest.mark.parametrize("text", ["{", "[]", '"llama"', "\xff"])
def test_a_configuration_that_is_not_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UnsupportedModelError, match=r"config\.json is not (valid JSON|a JSON object)"):
        inspect_model(tmp_path)


@pytest.mark.parametrize("values", [{}, {"model_type": "no-such-model"}, {"model_type": "llama", "hidden_size": "big"}])
def test_a_configuration_of_nothing_known(tmp_path: Path, values: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(values))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UnsupportedModelError, match=r"config\.json is wrong"):
        inspect_model(tmp_path)


def test_code_from_outside_is_never_run(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    values = {
        "model_type": "evil",
        "architectures": ["EvilForCausalLM"],
        "auto_map": {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilForCausalLM"},
    }
    (tmp_path / "config.json").write_text(json.dumps(values))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UnsupportedModelError, match=r"\(EvilForCausalLM\): it needs code from outside"):
        inspect_model(tmp_path)


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_generation_configuration_that_is_not_json(tmp_path: Path, text: str) -> None:
    path = write_config(ARCHITECTURES["llama"](), tmp_path / "model")
    (path / "generation_config.json").write_text(text)
    with pytest.raises(UnsupportedModelError, match=r"its generation_config\.json is not (valid JSON|a JSON object)"):
        inspect_model(path)


def test_no_safetensors(tmp_path: Path) -> None:
    path = write_config(ARCHITECTURES["llama"](), tmp_path / "model")
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    with pytest.raises(UnsupportedModelError, match=r"\(LlamaForCausalLM\): it has no safetensors weights"):
        inspect_model(path)


def test_quantized(tmp_path: Path) -> None:
    config = ARCHITECTURES["llama"]()
    config.quantization_config = {"quant_method": "gptq", "bits": 4}
    assert "quantized" in refusal(config, tmp_path)


@pytest.mark.parametrize("dtype", ["int8", "float64", "nonsense"])
def test_unknown_dtype(tmp_path: Path, dtype: str) -> None:
    assert f"dtype {dtype!r} is not supported, use one of bfloat16" in refusal(
        ARCHITECTURES["llama"](), tmp_path, dtype=dtype
    )


@pytest.mark.parametrize("limit", [0, -1, 257])
def test_a_context_beyond_the_model(tmp_path: Path, limit: int) -> None:
    assert f"must be between 1 and 256, got {limit}" in refusal(
        ARCHITECTURES["llama"](), tmp_path, max_context_tokens=limit
    )


ODD_VALUES = [0, -1, 3, 1.5, "many", None, [], {}, True, 10**12]


@pytest.mark.parametrize(
    "key",
    [
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "hidden_size",
        "head_dim",
        "vocab_size",
        "max_position_embeddings",
        "rope_parameters",
        "hidden_act",
        "eos_token_id",
        "dtype",
        "layer_types",
        "architectures",
        "quantization_config",
        "tie_word_embeddings",
        "rms_norm_eps",
    ],
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_odd_values_are_refused_or_harmless(tmp_path: Path, key: str) -> None:
    """Whatever a configuration says: facts or a refusal, nothing else."""
    path = write_config(ARCHITECTURES["llama"](), tmp_path / "model")
    values = json.loads((path / "config.json").read_text())
    refusals = []
    for odd in ODD_VALUES:
        (path / "config.json").write_text(json.dumps(values | {key: odd}))
        try:
            facts = inspect_model(path)
        except UnsupportedModelError as error:
            refusals.append(str(error))
        else:
            assert facts.parameters > 0
    assert all(str(path) in refusal for refusal in refusals)
    assert refusals or key in {"architectures", "eos_token_id", "tie_word_embeddings", "rms_norm_eps", "head_dim"}


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, -math.inf, True, 10**400, "7"])
@pytest.mark.parametrize("key", ["rope_theta", "factor", "original_max_position_embeddings"])
def test_rotary_numbers_that_cannot_be_are_refused(tmp_path: Path, key: str, value: Any) -> None:
    path = write_config(ARCHITECTURES["llama"](), tmp_path / "model")
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 64, key: value}
    edit(path, rope_parameters=rope)
    with pytest.raises(UnsupportedModelError, match=rf"config\.json (says {key} .*, which cannot be|is wrong)"):
        inspect_model(path)


@pytest.mark.parametrize("value", [-1e-6, math.nan, math.inf, 10**400])
def test_epsilons_that_cannot_be_are_refused(tmp_path: Path, value: float) -> None:
    path = write_config(ARCHITECTURES["llama"](), tmp_path / "model")
    edit(path, rms_norm_eps=value)
    with pytest.raises(UnsupportedModelError, match=r"config\.json (says rms_norm_eps .*, which cannot be|is wrong)"):
        inspect_model(path)


def test_what_is_wrong_is_told_with_the_field(tmp_path: Path) -> None:
    """Transformers says them on two lines."""
    path = write_config(ARCHITECTURES["llama"](), tmp_path / "model")
    edit(path, rms_norm_eps="1e-5")
    with pytest.raises(UnsupportedModelError, match=r"field 'rms_norm_eps': TypeError: .*expected float, got str"):
        inspect_model(path)


@pytest.mark.parametrize("value", [2**31, 10**30, 10**400])
def test_a_context_beyond_all_bounds_is_refused(tmp_path: Path, value: int) -> None:
    path = write_config(ARCHITECTURES["llama"](), tmp_path / "model")
    edit(path, max_position_embeddings=value)
    with pytest.raises(UnsupportedModelError, match=r"says a context of more than 2147483647 tokens"):
        inspect_model(path)


@pytest.mark.parametrize("value", [0, -1, 10**9, 10**30, 10**400, math.nan, math.inf, 1.5, True, "7", {}])
@pytest.mark.parametrize("name", ["llama", "gemma2-cap-window"])
def test_windows_that_cannot_be_are_refused(tmp_path: Path, name: str, value: Any) -> None:
    """In no time, and without a mask of that size."""
    path = write_config(ARCHITECTURES[name](), tmp_path / "model")
    edit(path, sliding_window=value)
    with pytest.raises(UnsupportedModelError):
        inspect_model(path)


def edit(path: Path, **values: Any) -> None:
    (path / "config.json").write_text(json.dumps(json.loads((path / "config.json").read_text()) | values))


def test_impossible_sizes(tmp_path: Path) -> None:
    config = ARCHITECTURES["llama"]()
    config.num_key_value_heads = 3
    path = write_config(config, tmp_path / "model")
    with pytest.raises(UnsupportedModelError, match=r"\(LlamaForCausalLM\)"):
        inspect_model(path)
