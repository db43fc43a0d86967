"""A live request, as the scheduler follows it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from aegaeon.core.request import Request
from aegaeon.scheduler.facts import PolicyFacts


class JobPhase(StrEnum):
    """What a request waits for."""

    WAITING = "waiting"  # for its prompt (or, after a recompute, its whole context) to be processed
    DECODING = "decoding"  # for its next tokens; its KV is in the slab cache
    DROPPING = "dropping"  # for the report that its KV was dropped; then it waits to be prefilled again


@dataclass(slots=True, eq=False)
class Job:
    """What every policy follows of a request; each adds where it is.

    ``found_tokens``: of its context, whose KV need not be computed.
    """

    request: Request
    facts: PolicyFacts
    order: tuple[float, int]  # arrival time, then order of arrival events
    context_tokens: int
    phase: JobPhase = JobPhase.WAITING
    failed_turns: int = 0
    starved_alone: bool = False
    found_tokens: int = 0
    request_id: str = field(init=False)
    width: int = field(init=False)  # rows of a decode step
    model: str = field(init=False)
    max_blocks: int = field(init=False)  # KV blocks of the longest context that it can reach
    max_kv_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.request_id = self.request.request_id
        self.width = self.request.width
        self.model = self.facts.name
        longest_tokens = max(self.facts.max_context_tokens, self.request.prompt_tokens + 1)
        tokens = min(self.request.prompt_tokens + self.request.max_new_tokens, longest_tokens)
        self.max_blocks = self.blocks_for(tokens)
        self.max_kv_bytes = self.max_blocks * self.facts.block_bytes

    def blocks_for(self, tokens: int) -> int:
        """KV blocks of so long a context: whole blocks of the prompt once, the others for each of its rows."""
        blocks = self.facts.blocks_for(tokens)
        if self.width == 1:
            return blocks
        common = min(tokens, self.request.prompt_tokens) // self.facts.block_tokens
        return common + self.width * (blocks - common)

    @property
    def due_order(self) -> tuple[float, int]:
        """When its first token is due, then order of arrival events: who has the same target as all goes by arrival."""
        return self.request.slo.due_s(self.request.arrival_s, 0), self.order[1]

    @property
    def kv_blocks(self) -> int:
        """KV blocks of its context, and one more to grow into."""
        blocks = self.blocks_for(self.context_tokens) + self.width
        return blocks if blocks < self.max_blocks else self.max_blocks

    @property
    def kv_bytes(self) -> int:
        """KV bytes of its context, and one more block to grow into."""
        return self.kv_blocks * self.facts.block_bytes
