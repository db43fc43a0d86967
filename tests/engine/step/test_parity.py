"""The engine's greedy output equals Transformers' ``generate()``, token for token."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from aegaeon.engine.architecture.architecture import inspect_model
from aegaeon.engine.attention.kv_arena import KvArena
from aegaeon.engine.attention.state_rows import StateRows
from aegaeon.engine.step.model import Model
from aegaeon.engine.step.runner import Runner
from tests.engine.greedy import POISON, Greedy, arena_of, blocks_of
from tests.engine.zoo import (
    ARCHITECTURES,
    NEW_TOKENS,
    PROMPT_LENGTHS,
    VOCAB,
    WINDOW,
    TinyModel,
    Zoo,
    generate,
    reference,
    write_config,
)

SLABS = 8
LONG_PROMPT_TOKENS, LONG_TOKENS = 300, 60


def runner_of(tiny: TinyModel) -> Runner:
    facts = inspect_model(tiny.path, dtype="float32")
    return Runner(Model(tiny.path, dtype="float32"), facts.kv_shape)


def bound(tiny: TinyModel) -> Runner:
    runner = runner_of(tiny)
    runner.model.bind(tiny.weights)
    return runner


def slab_bytes_of(runner: Runner) -> int:
    """A slab that is not a whole number of blocks."""
    return 2 * runner.kv_shape.block_bytes + 40


def greedy(runner: Runner, tiny: TinyModel, arena: KvArena, blocks: list[int]) -> Greedy:
    return Greedy(runner, arena, blocks, tiny.prompts, NEW_TOKENS)


def test_contexts_outgrow_windows_and_blocks() -> None:
    assert max(PROMPT_LENGTHS) > 2 * WINDOW
    assert max(PROMPT_LENGTHS) + NEW_TOKENS > 3 * 16
    assert len(ARCHITECTURES) >= 20


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_mixed_batches_equal_generate(zoo: Zoo, name: str) -> None:
    """Chunked prefills and decodes mixed, sequences at different stages, blocks anywhere, memory full of NaN."""
    tiny = zoo(name)
    runner = bound(tiny)
    slab_bytes = slab_bytes_of(runner)
    arena, _ = arena_of(slab_bytes, SLABS)
    blocks = blocks_of(runner.kv_shape, slab_bytes, range(SLABS))
    assert greedy(runner, tiny, arena, blocks).run() == tiny.outputs
    assert len({token for output in tiny.outputs for token in output}) >= 8, "the model says too little to tell"


ROPE_KINDS = {
    "default": {},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "yarn": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "longrope": {
        "rope_type": "longrope",
        "short_factor": [1.0 + index / 8 for index in range(8)],
        "long_factor": [4.0] * 8,
        "original_max_position_embeddings": 512,
    },
}


@pytest.mark.parametrize("kind", ROPE_KINDS)
def test_far_positions_equal_generate_with_every_kind_of_rope(kind: str, tmp_path: Path) -> None:
    config_class = transformers.Phi3Config if kind == "longrope" else transformers.LlamaConfig
    config = config_class(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        rope_parameters={"rope_theta": 10000.0, "rope_type": "default", **ROPE_KINDS[kind]},
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
        **({"original_max_position_embeddings": 512} if kind == "longrope" else {}),
    )
    write_config(config, tmp_path / kind)
    model = reference(config, torch.float32)
    prompt = torch.randint(2, VOCAB, (LONG_PROMPT_TOKENS,), generator=torch.Generator().manual_seed(3)).tolist()
    tiny = TinyModel(tmp_path / kind, model.state_dict(), [prompt], [generate(model, prompt, LONG_TOKENS)])
    runner = bound(tiny)
    slab_bytes = 64 * runner.kv_shape.block_bytes
    arena, _ = arena_of(slab_bytes, 1)
    blocks = blocks_of(runner.kv_shape, slab_bytes, [0])
    run = Greedy(runner, arena, blocks, tiny.prompts, LONG_TOKENS, chunk=70)
    assert run.run() == tiny.outputs


PAIRS = [
    ("llama", "gemma2-cap-window"),
    ("deepseek_v3-mla", "qwen2"),
    ("gpt_oss-sinks", "gpt2"),
    ("mixtral", "llama4-chunks"),
    ("qwen3_next", "llama"),
    ("granite4", "mamba"),
]


@pytest.mark.parametrize("names", PAIRS, ids=["+".join(pair) for pair in PAIRS])
def test_models_alternate_at_every_token(zoo: Zoo, names: tuple[str, str]) -> None:
    """Two models on one arena, slab next to slab, each bound anew from the same overwritten memory at each step."""
    tinies = [zoo(name) for name in names]
    runners = [runner_of(tiny) for tiny in tinies]
    slab_bytes = sum(slab_bytes_of(runner) for runner in runners)
    arena, _ = arena_of(slab_bytes, 2 * SLABS)
    runs = [
        greedy(runner, tiny, arena, blocks_of(runner.kv_shape, slab_bytes, range(index, 2 * SLABS, 2)))
        for index, (runner, tiny) in enumerate(zip(runners, tinies, strict=True))
    ]
    memory = torch.empty(max(sum(w.nbytes for w in tiny.weights.values()) for tiny in tinies), dtype=torch.uint8)
    unfinished = [True, True]
    while any(unfinished):
        for index, (runner, tiny, run) in enumerate(zip(runners, tinies, runs, strict=True)):
            memory.fill_(POISON)
            runner.model.bind(lay_out(tiny.weights, memory))
            unfinished[index] = run.step()
            runner.model.unbind()
    assert [run.outputs for run in runs] == [tiny.outputs for tiny in tinies]


def test_weights_can_be_unmapped_between_tokens(zoo: Zoo) -> None:
    """After ``unbind`` nothing holds the weights: their mapping can be closed, and another one be bound."""
    tiny = zoo("qwen2")
    runner = runner_of(tiny)
    slab_bytes = slab_bytes_of(runner)
    arena, _ = arena_of(slab_bytes, SLABS)
    run = greedy(runner, tiny, arena, blocks_of(runner.kv_shape, slab_bytes, range(SLABS)))
    size_bytes = sum(weight.nbytes for weight in tiny.weights.values())
    unfinished = True
    while unfinished:
        mapping = mmap.mmap(-1, size_bytes)
        runner.model.bind(lay_out(tiny.weights, torch.frombuffer(mapping, dtype=torch.uint8)))
        unfinished = run.step()
        runner.model.unbind()
        mapping.close()  # BufferError if anything still looks into it
    assert run.outputs == tiny.outputs


@pytest.mark.parametrize("name", ["llama", "gemma3-window", "deepseek_v2-mla", "llama4-chunks", "bamba"])
def test_foreign_blocks_never_matter(zoo: Zoo, name: str) -> None:
    """Everything that belongs to no sequence is made NaN before each step."""
    tiny = zoo(name)
    runner = bound(tiny)
    slab_bytes = slab_bytes_of(runner)
    arena, memory = arena_of(slab_bytes, SLABS)
    blocks = blocks_of(runner.kv_shape, slab_bytes, range(SLABS))
    run = greedy(runner, tiny, arena, list(blocks))
    while run.step():
        for block in set(blocks) - run.owned_blocks:
            memory[block : block + runner.kv_shape.block_bytes] = POISON
    assert run.outputs == tiny.outputs


def test_recomputing_from_the_tokens_goes_on_alike(zoo: Zoo) -> None:
    """A sequence whose KV was lost is fed again from its first token, elsewhere, and goes on where it was."""
    tiny = zoo("qwen3")
    runner = bound(tiny)
    slab_bytes = slab_bytes_of(runner)
    arena, memory = arena_of(slab_bytes, SLABS)
    blocks = blocks_of(runner.kv_shape, slab_bytes, range(SLABS))
    run = greedy(runner, tiny, arena, blocks)
    for _ in range(12):
        run.step()
    for sequence in run.sequences:
        blocks[:0] = sequence.blocks
        sequence.blocks, sequence.kv_tokens = [], 0
    memory.fill_(POISON)
    assert run.run() == tiny.outputs


@pytest.mark.parametrize("name", ["lfm2", "bamba", "jamba"])
def test_states_that_are_torn_are_computed_again(zoo: Zoo, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process ends while it writes states; whoever goes on knows how far each sequence was before that step."""
    tiny = zoo(name)
    shape = inspect_model(tiny.path, dtype="float32", block_tokens=1).kv_shape
    runner = Runner(Model(tiny.path, dtype="float32"), shape)
    runner.model.bind(tiny.weights)
    slab_bytes = slab_bytes_of(runner)
    arena, _ = arena_of(slab_bytes, SLABS)
    run = greedy(runner, tiny, arena, blocks_of(shape, slab_bytes, range(SLABS)))
    for _ in range(12):
        run.step()
    before = [sequence.kv_tokens for sequence in run.sequences]
    with monkeypatch.context() as patch:
        patch.setattr(StateRows, "scatter", _torn(StateRows.scatter))
        with pytest.raises(InterruptedError):
            run.step()
    for sequence, tokens in zip(run.sequences, before, strict=True):
        sequence.kv_tokens = arena.usable_tokens(shape, sequence.blocks, tokens)
        assert sequence.kv_tokens % shape.block_tokens == 0 or sequence.kv_tokens == tokens
    assert sum(sequence.kv_tokens for sequence in run.sequences) < sum(before)
    assert run.run() == tiny.outputs


def _torn(scatter: Callable[..., None]) -> Callable[..., None]:
    """The second tensor that is written is not written to its end."""
    calls = []

    def torn(rows: StateRows, blocks: torch.Tensor, states: torch.Tensor) -> None:
        calls.append(rows)
        scatter(rows, blocks, states if len(calls) < 3 else torch.full_like(states, 7))
        if len(calls) == 3:
            raise InterruptedError

    return torn


def test_large_chunks_equal_small_ones(zoo: Zoo, tmp_path: Path) -> None:
    """A prompt of several attention tiles, at once and in pieces that straddle blocks."""
    tiny = zoo("gemma2-cap-window")
    runner = bound(tiny)
    slab_bytes = 16 * runner.kv_shape.block_bytes
    prompts = [[(7 * i * i + 3 * i) % 190 + 2 for i in range(220)]]
    outputs = []
    for chunk in (220, 150, 33):
        arena, _ = arena_of(slab_bytes, 1)
        blocks = blocks_of(runner.kv_shape, slab_bytes, [0])
        outputs.append(Greedy(runner, arena, blocks, prompts, 8, chunk=chunk).run())
    assert outputs[0] == outputs[1] == outputs[2]


def lay_out(weights: dict[str, torch.Tensor], memory: torch.Tensor) -> dict[str, torch.Tensor]:
    """Copy weights into flat memory, one after the other; views of it. A tied weight is stored once."""
    views: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    offset = 0
    for name, weight in weights.items():
        if weight.data_ptr() in seen:
            continue
        seen.add(weight.data_ptr())
        place = memory[offset : offset + weight.nbytes].view(weight.dtype).view(weight.shape)
        place.copy_(weight)
        views[name] = place
        offset += weight.nbytes
    return views
