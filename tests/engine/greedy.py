"""What an instance does with an engine, in a few lines: sequences at different stages, fed together, greedily."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from aegaeon.core.kv_shape import KvShape
from aegaeon.engine.attention.kv_arena import KvArena
from aegaeon.engine.attention.sequence_slice import SequenceSlice
from aegaeon.engine.step.runner import Runner

POISON = 0xFF
"""A byte that makes NaNs of all float types."""


def arena_of(slab_bytes: int, slabs: int) -> tuple[KvArena, torch.Tensor]:
    """A poisoned arena and its memory."""
    memory = torch.full((slab_bytes * slabs,), POISON, dtype=torch.uint8)
    return KvArena(memory, slab_bytes), memory


def blocks_of(shape: KvShape, slab_bytes: int, slabs: Sequence[int], seed: int = 0) -> list[int]:
    """Offsets of all blocks that fit into some slabs, shuffled."""
    per_slab = slab_bytes // shape.block_bytes
    blocks = [slab * slab_bytes + index * shape.block_bytes for slab in slabs for index in range(per_slab)]
    random.Random(seed).shuffle(blocks)
    return blocks


@dataclass
class Underway:
    """A sequence and where it is."""

    token_ids: list[int]
    end: int
    kv_tokens: int = 0
    blocks: list[int] = field(default_factory=list)


class Greedy:
    """Runs prompts: the i-th joins after ``i * stagger`` steps, in chunks of ``chunk`` tokens."""

    def __init__(
        self,
        runner: Runner,
        arena: KvArena,
        blocks: list[int],
        prompts: Sequence[Sequence[int]],
        new_tokens: int,
        chunk: int = 7,
        stagger: int = 2,
    ) -> None:
        self._runner, self._arena, self._free = runner, arena, blocks
        self._chunk, self._stagger = chunk, stagger
        self._steps = 0
        self._prompt_lengths = [len(prompt) for prompt in prompts]
        self.sequences = [Underway(list(prompt), len(prompt) + new_tokens) for prompt in prompts]

    @property
    def outputs(self) -> list[list[int]]:
        return [s.token_ids[n:] for s, n in zip(self.sequences, self._prompt_lengths, strict=True)]

    @property
    def owned_blocks(self) -> set[int]:
        return {block for sequence in self.sequences for block in sequence.blocks}

    def step(self) -> bool:
        """Feed everybody who is not done; False when all are."""
        joined = [s for i, s in enumerate(self.sequences) if self._steps >= i * self._stagger]
        running = [s for s in joined if len(s.token_ids) < s.end]
        self._steps += 1
        if running:
            self._feed(running)
        return any(len(s.token_ids) < s.end for s in self.sequences)

    def run(self) -> list[list[int]]:
        while self.step():
            pass
        return self.outputs

    def _feed(self, sequences: list[Underway]) -> None:
        slices, sampling = [], []
        for sequence in sequences:
            end = min(len(sequence.token_ids), sequence.kv_tokens + self._chunk)
            end = min(end, self._runner.kv_shape.step_end(sequence.kv_tokens) or end)
            while len(sequence.blocks) < self._runner.kv_shape.blocks_for(end):
                sequence.blocks.append(self._free.pop())
            last = end == len(sequence.token_ids)
            fed = sequence.token_ids[sequence.kv_tokens : end]
            slices.append(SequenceSlice(fed, sequence.kv_tokens, sequence.blocks, last))
            sequence.kv_tokens = end
            if last:
                sampling.append(sequence)
        logits = self._runner.step(slices, self._arena)
        assert logits.shape[0] == len(sampling)
        for sequence, token in zip(sampling, logits.argmax(-1).tolist(), strict=True):
            sequence.token_ids.append(token)
