"""A live request as the policy ``slack`` follows it: how far it is, when its next token is due, where its KV lies."""

from __future__ import annotations

from dataclasses import dataclass

from aegaeon.scheduler.job import Job, JobPhase


@dataclass(slots=True, eq=False)
class SlackJob(Job):
    """``device``: the instance that has a copy of its KV. ``turn_id``: of the turn that it takes part in.

    ``kv_count_bytes``: what is counted for it on that device. ``due_s`` is constant while it is in no turn.
    ``start_s``: when work on its next token must begin at the latest, and ``weight``: what a token of it is worth, both
    as of when it began to wait.
    """

    device: str | None = None
    turn_id: int | None = None
    kv_count_bytes: int = 0
    start_s: float = 0.0
    weight: float = 1.0

    @property
    def decodes(self) -> bool:
        """Whether its prompt has been processed."""
        return self.phase is JobPhase.DECODING

    @property
    def due_s(self) -> float:
        """When its next token is due: token k is due ``ttft_s + k * tpot_s`` after arrival."""
        request = self.request
        return request.slo.due_s(request.arrival_s, self.context_tokens - request.prompt_tokens)

    def kv_bytes_after(self, tokens: int) -> int:
        """KV bytes of its context, ``tokens`` more, and a block to grow into."""
        blocks = min(self.blocks_for(self.context_tokens + tokens) + self.width, self.max_blocks)
        return blocks * self.facts.block_bytes
