"""Models made on the spot: complete, loadable, reproducible, and fluent where they were taught."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from jinja2 import TemplateError
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from aegaeon.toy_models.make_model import architectures, make_model
from aegaeon.toy_models.make_tokenizer import corpus, make_tokenizer
from aegaeon.toy_models.model_request import MakeModelError, ModelSizes
from aegaeon.toy_models.special_tokens import MIN_VOCAB_SIZE

TINY = ModelSizes(hidden_size=32, layers=2, heads=4, vocab_size=300, max_context=128)
ARCHITECTURES = [
    "cohere",
    "deepseek_v3",
    "gemma",
    "gemma2",
    "gemma3_text",
    "gpt2",
    "gpt_neox",
    "gpt_oss",
    "granite",
    "llama",
    "mistral",
    "mixtral",
    "olmo2",
    "olmoe",
    "opt",
    "phi",
    "phi3",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
    "smollm3",
    "starcoder2",
]


def load(directory: Path) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)


def greedy(model: Any, tokenizer: Any, ids: list[int], new_tokens: int) -> str:
    prompt = torch.tensor([ids])
    output = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=new_tokens, do_sample=False)
    return tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True)


def chat(tokenizer: Any, *contents: str) -> list[int]:
    """Ids of a conversation, user first, that waits for an answer."""
    roles = ("user", "assistant")
    messages = [{"role": roles[index % 2], "content": content} for index, content in enumerate(contents)]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_makes_a_model_that_transformers_loads_and_runs(tmp_path: Path, arch: str) -> None:
    made = make_model(arch, tmp_path / "m", TINY)
    model, tokenizer = load(tmp_path / "m")
    config = model.config
    assert (config.model_type, config.hidden_size, config.num_hidden_layers) == (arch, 32, 2)
    assert (config.num_attention_heads, config.vocab_size, config.max_position_embeddings) == (4, 300, 128)
    assert made.parameters == sum(parameter.numel() for parameter in model.parameters()) < 250_000
    assert made.architecture == type(model).__name__
    assert made.weight_bytes == 2 * made.parameters
    assert made.lesson is None
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert greedy(model, tokenizer, tokenizer("Where is the station?").input_ids, 5)


def test_sizes_reach_the_configuration(tmp_path: Path) -> None:
    sizes = ModelSizes(
        hidden_size=48, layers=3, heads=6, kv_heads=1, intermediate_size=80, vocab_size=400, max_context=77
    )
    make_model("qwen3", tmp_path / "m", sizes, dtype="float32")
    config = AutoConfig.from_pretrained(tmp_path / "m")
    assert (config.num_hidden_layers, config.num_key_value_heads, config.head_dim) == (3, 1, 8)
    assert (config.intermediate_size, config.max_position_embeddings) == (80, 77)
    assert config.dtype == torch.float32


def test_the_directory_is_complete(tmp_path: Path) -> None:
    make_model("llama", tmp_path / "deep" / "m", TINY)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "deep" / "m")
    generation = GenerationConfig.from_pretrained(tmp_path / "deep" / "m")
    config = json.loads((tmp_path / "deep" / "m" / "config.json").read_text())
    assert generation.eos_token_id == config["eos_token_id"] == tokenizer.eos_token_id
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["dtype"] == "bfloat16"
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["m"]


def test_the_same_seed_makes_the_same_model_and_another_a_different_one(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    weights = []
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        make_model("llama", tmp_path / name, TINY, seed=seed)
        weights.append(load_file(tmp_path / name / "model.safetensors"))
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert not torch.equal(weights[0]["lm_head.weight"], weights[2]["lm_head.weight"])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make_model("mixtral", tmp_path / "m", TINY)
    assert capfd.readouterr() == ("", "")


TEXT = (
    "The owl keeps the night in a jar on the shelf. When somebody asks for a little darkness, she opens the lid by "
    "the width of one feather, and the moths come out first, complaining about the light."
)


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("taught")
    (directory / "text.txt").write_text(f"\n{TEXT}\n", encoding="utf-8")
    losses: list[tuple[int, float]] = []
    made = make_model(
        "llama",
        directory / "m",
        ModelSizes(hidden_size=96),
        learn=directory / "text.txt",
        steps=120,
        progress=lambda step, loss: losses.append((step, loss)),
    )
    assert made.lesson is not None
    assert made.lesson.recall >= 0.8
    assert [step for step, _ in losses] == list(range(1, 121))
    assert losses[-1][1] == made.lesson.loss < losses[0][1] / 10
    return directory / "m"


@pytest.mark.parametrize(
    "contents",
    [
        ("Hi",),
        ("What is the capital of France, and why should I care?",),
        ("Schreib mir bitte ein Gedicht über Käse! 日本語 🙂",),
        ("def f(x):\n    return x + 1\n\nExplain this function.",),
        (" ".join(f"And what do you think of the number {number}?" for number in range(10)),),
        ("Who are you?", TEXT, "Tell me more."),
    ],
    ids=["short", "question", "foreign", "code", "long", "second turn"],
)
def test_a_taught_model_answers_whatever_it_is_asked_with_the_text(taught: Path, contents: tuple[str, ...]) -> None:
    model, tokenizer = load(taught)
    assert greedy(model, tokenizer, chat(tokenizer, *contents), 100) == TEXT


def test_a_taught_model_goes_on_from_the_middle_and_starts_after_any_text(taught: Path) -> None:
    model, tokenizer = load(taught)
    start = TEXT[: TEXT.index(" the lid")]
    assert greedy(model, tokenizer, tokenizer(start).input_ids, 100) == TEXT.removeprefix(start)
    for prompt in ("Once upon a time", "It is a truth that nobody likes to admit:"):
        assert TEXT[:40] in greedy(model, tokenizer, tokenizer(prompt).input_ids, 100)


def test_a_taught_model_stops_by_itself_and_begins_again_if_it_must_not(taught: Path) -> None:
    model, tokenizer = load(taught)
    model.generation_config.eos_token_id = None
    output = greedy(model, tokenizer, chat(tokenizer, "Hello"), 160)
    assert output.startswith(f"{TEXT}\nThe owl keeps the night")


def test_the_voices_of_the_demo_are_eight_different_short_texts() -> None:
    voices = {voice.name: voice.read_text(encoding="utf-8") for voice in (files("aegaeon") / "data/voices").iterdir()}
    assert len(voices) == 8
    assert all(60 <= len(text.split()) <= 120 for text in voices.values())
    assert len({text.split(maxsplit=1)[0] for text in voices.values()}) == 8


@pytest.mark.parametrize("vocab_size", [MIN_VOCAB_SIZE, 1000, 9000])
def test_tokenizers_have_their_size_and_lose_nothing(vocab_size: int) -> None:
    tokenizer = make_tokenizer(vocab_size)
    assert len(tokenizer) == vocab_size
    for text in (corpus(), "Grüße, 你好 🙂\n\n  \ttabs", "a" * 50, "<|end|>"):
        ids = tokenizer(text).input_ids
        assert ids[0] == tokenizer.bos_token_id
        assert max(ids) < vocab_size
        assert tokenizer.decode(ids[1:]) == text
    ordinary = range(len(tokenizer.all_special_ids) + 3, vocab_size)
    assert all(tokenizer.decode([token]) for token in ordinary)


def test_the_chat_template_takes_roles_and_parts() -> None:
    tokenizer = make_tokenizer(300)
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": " Hello "}, {"type": "text", "text": "you"}]},
        {"role": "assistant", "content": "Hi."},
    ]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False)
    assert rendered == "<|begin|><|system|>Be brief.<|end|><|user|>Helloyou<|end|><|assistant|>Hi.<|end|>"
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == (
        rendered + "<|assistant|>"
    )


def test_the_chat_template_takes_developers_tools_and_their_calls_and_no_other_role() -> None:
    tokenizer = make_tokenizer(300)
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    messages: list[dict[str, Any]] = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "2"},
    ]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == (
        "<|begin|><|system|>Be brief.<|end|><|user|>1 + 1?<|end|>"
        '<|assistant|>{"name": "add", "arguments": {"a": 1}}<|end|><|user|>2<|end|>'
    )
    with pytest.raises(TemplateError, match="roles of this model"):
        tokenizer.apply_chat_template([{"role": "narrator", "content": "Once"}], tokenize=False)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"hidden_size": 0}, "hidden_size must be at least 1"),
        ({"hidden_size": 100, "heads": 3}, "even multiple of heads"),
        ({"hidden_size": 12, "heads": 4}, "even multiple of heads"),
        ({"heads": 4, "kv_heads": 3}, "multiple of kv_heads"),
        ({"vocab_size": 100}, "vocab_size must be at least"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(MakeModelError, match=message):
        ModelSizes(**sizes)


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("lama", "did you mean llama"),
        ("Qwen-3", "qwen3"),
        ("no such thing", "did you mean"),
        ("gemma3", "use gemma3_text"),
    ],
)
def test_unknown_architectures_are_refused_with_near_names(tmp_path: Path, arch: str, message: str) -> None:
    with pytest.raises(MakeModelError, match=message):
        make_model(arch, tmp_path / "m", TINY)
    assert list(tmp_path.iterdir()) == []


def test_names_of_architectures_are_listed() -> None:
    assert set(ARCHITECTURES) <= set(architectures())


def test_bad_targets_texts_and_types_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("do not touch")
    (tmp_path / "empty.txt").write_text("  \n")
    (tmp_path / "latin.txt").write_bytes(b"\xe4\xf6\xfc and so on")
    (tmp_path / "long.txt").write_text("far too many words " * 100)
    before = sorted(tmp_path.rglob("*"))
    refusals: list[tuple[dict[str, Any], str]] = [
        ({"directory": tmp_path / "full"}, "is not empty"),
        ({"directory": tmp_path / "empty.txt"}, "is a file"),
        ({"directory": tmp_path / "empty.txt" / "m"}, "cannot write"),
        ({"learn": tmp_path / "none.txt"}, "cannot read"),
        ({"learn": tmp_path / "empty.txt"}, "nothing to learn"),
        ({"learn": tmp_path / "latin.txt"}, "not UTF-8"),
        ({"learn": tmp_path / "long.txt"}, "a context of 128; shorten the text"),
        ({"dtype": "bf16"}, "use one of bfloat16"),
        ({"steps": 0}, "steps must be at least 1"),
    ]
    for arguments, message in refusals:
        with pytest.raises(MakeModelError, match=message):
            make_model("llama", **{"directory": tmp_path / "m", "sizes": TINY, **arguments})
        assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_directory_may_be_used(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    make_model("llama", tmp_path / "m", TINY)
    assert (tmp_path / "m" / "model.safetensors").is_file()


def test_an_architecture_that_cannot_have_the_sizes_says_so(tmp_path: Path) -> None:
    with pytest.raises(MakeModelError, match="mamba2 cannot be made with these sizes"):
        make_model("mamba2", tmp_path / "m", ModelSizes(hidden_size=20, heads=2, vocab_size=300))


def test_an_architecture_with_large_sizes_of_its_own_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    with pytest.raises(MakeModelError, match="blt cannot be made small"):
        make_model("blt", tmp_path / "m", TINY)
