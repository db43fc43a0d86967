"""How far bfloat16 is from float32 on a real model and real text: not further than Transformers' own bfloat16.

Greedy output in bfloat16 is not ``generate()``'s token for token: two orders of the same sums round differently, and
where two tokens are nearly as likely the other one may win. What is equal is the size of the error.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import transformers as t
from safetensors.torch import load_file
from torch import Tensor

from aegaeon.engine.architecture.architecture import inspect_model
from aegaeon.engine.attention.sequence_slice import SequenceSlice
from aegaeon.engine.step.model import Model
from aegaeon.engine.step.packing import WeightPacker
from aegaeon.engine.step.runner import Runner
from tests.engine.greedy import arena_of, blocks_of
from tests.engine.real_model import missing, real_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
    pytest.mark.skipif("AEGAEON_LONG_TESTS" not in os.environ, reason="takes many minutes: set AEGAEON_LONG_TESTS=1"),
]

PROMPT_TOKENS, NEW_TOKENS = 64, 24
ROWS = 16
ROOM = 1.1
"""Our mean divergence over that of Transformers."""

WARM_STEPS = 60
"""Enough for every weight to be packed, as it is after a while of serving."""

ROOT = Path(__file__).resolve().parents[3]
TEXTS = [ROOT / "LICENSE", *sorted((ROOT / "aegaeon" / "data" / "voices").glob("*.txt"))]


class Reference:
    """The real model, its text as ``[ROWS, PROMPT_TOKENS + NEW_TOKENS]``, and what float32 says of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        tokenizer = t.AutoTokenizer.from_pretrained(path)
        token_ids = tokenizer("\n".join(file.read_text() for file in TEXTS)).input_ids
        width = PROMPT_TOKENS + NEW_TOKENS
        self.rows = torch.tensor(token_ids[: ROWS * width]).view(ROWS, width)
        with torch.inference_mode():
            model = t.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
            self.log_probabilities = model(self.rows).logits.log_softmax(-1)

    def divergence(self, logits: Tensor, rows: slice, positions: slice) -> float:
        """Mean of KL(float32 || logits), in nats; ``logits`` ``[rows, positions, vocabulary]``."""
        pairs = zip(self.log_probabilities[rows, positions], logits, strict=True)  # row by row, for memory's sake
        return float(torch.stack([_divergence(exact, row) for exact, row in pairs]).mean())


def _divergence(exact: Tensor, logits: Tensor) -> Tensor:
    return (exact.exp() * (exact - logits.float().log_softmax(-1))).sum(-1).mean()


@pytest.fixture(scope="module")
def reference(pytestconfig: pytest.Config) -> Reference:
    assert pytestconfig.cache is not None
    return Reference(real_model(Path(pytestconfig.cache.mkdir("real-models"))))


@torch.inference_mode()
def transformers_logits(reference: Reference, rows: Sequence[slice]) -> tuple[Tensor, Tensor]:
    """Of the prompts, and of the tokens after them, one step at a time with a cache; batches are slices of rows."""
    model = t.AutoModelForCausalLM.from_pretrained(reference.path, dtype=torch.bfloat16).eval()
    prefilled, decoded = [], []
    for batch in rows:
        token_ids, cache = reference.rows[batch], t.DynamicCache(config=model.config)
        prefilled.append(model(token_ids[:, :PROMPT_TOKENS], past_key_values=cache).logits)
        steps = token_ids[:, PROMPT_TOKENS:].split(1, 1)
        decoded.append(torch.cat([model(step, past_key_values=cache).logits for step in steps], 1))
    return torch.cat(prefilled), torch.cat(decoded)


class EveryPosition(Model):
    """A model that gives the logits of every row of a batch."""

    def forward(self, token_ids: Tensor, positions: Tensor, logit_rows: Tensor, paged: object) -> Tensor:
        return super().forward(token_ids, positions, torch.arange(token_ids.shape[1]), paged)


def engine_logits(reference: Reference, rows: Sequence[slice], *, packed: bool) -> tuple[Tensor, Tensor]:
    """The same, of the engine."""
    shape = inspect_model(reference.path).kv_shape
    model = EveryPosition(reference.path)
    model.bind(load_file(reference.path / "model.safetensors"))
    packer = WeightPacker(2 << 30)
    runner = Runner(model, shape, packer if packed else None)
    blocks_each = shape.blocks_for(PROMPT_TOKENS + NEW_TOKENS)
    arena, _ = arena_of(shape.block_bytes, blocks_each * ROWS)
    blocks = blocks_of(shape, shape.block_bytes, range(blocks_each * ROWS))
    tables = [blocks[row * blocks_each :][:blocks_each] for row in range(ROWS)]
    for step in range(WARM_STEPS if packed else 0):
        runner.step([SequenceSlice([3], step, tables[0])], arena)
    assert (packer.packed_bytes(model) > 0) is packed or not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    prefilled, decoded = [], []
    for batch in rows:
        token_ids, own = reference.rows[batch].tolist(), tables[batch]
        slices = [SequenceSlice(ids[:PROMPT_TOKENS], 0, table) for ids, table in zip(token_ids, own, strict=True)]
        prefilled.append(runner.step(slices, arena).clone().view(len(own), PROMPT_TOKENS, -1))
        steps = []
        for position in range(PROMPT_TOKENS, PROMPT_TOKENS + NEW_TOKENS):
            pairs = zip(token_ids, own, strict=True)
            slices = [SequenceSlice([ids[position]], position, table) for ids, table in pairs]
            steps.append(runner.step(slices, arena).clone())
        decoded.append(torch.stack(steps, 1))
    return torch.cat(prefilled), torch.cat(decoded)


@pytest.mark.parametrize(("batch", "sequences"), [(1, 8), (16, 16)])
def test_bfloat16_is_as_near_to_float32_as_transformers_own(reference: Reference, batch: int, sequences: int) -> None:
    rows = slice(0, sequences)
    batches = [slice(row, row + batch) for row in range(0, sequences, batch)]

    def divergences(prefilled: Tensor, decoded: Tensor) -> list[float]:
        return [
            reference.divergence(prefilled, rows, slice(0, PROMPT_TOKENS)),
            reference.divergence(decoded, rows, slice(PROMPT_TOKENS, None)),
        ]

    theirs = divergences(*transformers_logits(reference, batches))
    for packed in (False, True):
        ours = divergences(*engine_logits(reference, batches, packed=packed))
        ratios = [own / their for own, their in zip(ours, theirs, strict=True)]
        print(f"batch {batch}, packed {packed}: {ours} over {theirs} nats (prefill, decode) are {ratios}")
        assert max(ratios) <= ROOM, "of the prompts, of the tokens after them"
