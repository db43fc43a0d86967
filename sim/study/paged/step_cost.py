"""How long one iteration of an engine takes, and what moving KV to the host and back costs."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class StepWork:
    """What one iteration does. ``pair_tokens``: squares of the prompts' lengths, summed."""

    prompt_tokens: int
    pair_tokens: int
    prompt_sequences: int
    decode_sequences: int
    context_tokens: int
    swapped_blocks: int


@dataclass(frozen=True, slots=True)
class StepCost:
    """Linear in what is done; prompts and decodes share one reading of the weights."""

    base_s: float
    prompt_token_s: float
    decode_sequence_s: float
    prompt_sequence_s: float = 0.0
    pair_s: float = 0.0
    context_token_s: float = 0.0
    swapped_block_s: float = 0.0

    def step_s(self, work: StepWork) -> float:
        return (
            self.base_s
            + self.prompt_token_s * work.prompt_tokens
            + self.pair_s * work.pair_tokens
            + self.prompt_sequence_s * work.prompt_sequences
            + self.decode_sequence_s * work.decode_sequences
            + self.context_token_s * work.context_tokens
            + self.swapped_block_s * work.swapped_blocks
        )

    def beside(self, shared_tokens: int) -> StepCost:
        """The same where every sequence attends to a prefix, too, that all of them share."""
        return replace(self, decode_sequence_s=self.decode_sequence_s + self.context_token_s * shared_tokens)
