"""A request as an instance holds it: its tokens, how many of them are in the KV cache, its block table.

Invariant: ``kv_tokens <= len(token_ids)``; a step feeds ``token_ids[kv_tokens:]`` (one token when decoding, a chunk
of the prompt when prefilling, everything so far when recomputing) and samples once all are fed.
"""

from __future__ import annotations

from collections.abc import Sequence

from aegaeon.core.timeline import Phase, PhaseSpan
from aegaeon.engine.sampling.choice import ScoredToken
from aegaeon.engine.sampling.sampling_state import SamplingState
from aegaeon.runtime.wire.messages import Member, Progress, SequenceState, TokenItem

# Between two steps of a turn there are messages to take: spans that far apart are one.
_MERGE_S = 5e-3


class LiveSequence:
    """Mutable state of one request on one instance."""

    def __init__(self, state: SequenceState, eos_ids: Sequence[int]) -> None:
        self.request_id = state.request_id
        self.frontend_id = state.frontend_id
        self.token_ids = list(state.token_ids)
        self.prompt_tokens = state.prompt_tokens
        self.cached_tokens = state.cached_tokens
        self.kv_tokens = state.kv_tokens
        self.saved_tokens = state.kv_tokens  # of the KV, safe in the slab cache
        self.branch = state.branch  # to be copied, until the driver is next told of it
        self.blocks: tuple[int, ...] = ()
        self.sampling = SamplingState(
            state.sampling,
            self.token_ids[: self.prompt_tokens],
            self.token_ids[self.prompt_tokens :],
            tuple(eos_ids),
        )
        self._reported_tokens = len(self.token_ids)
        self._spans: list[PhaseSpan] = []
        self._stalled_from_s: float | None = None

    def seat(self, member: Member) -> None:
        """Take the block table that the driver gives with a turn."""
        self.blocks = member.blocks

    @property
    def generated_tokens(self) -> int:
        return len(self.token_ids) - self.prompt_tokens

    @property
    def unfed_tokens(self) -> int:
        """Tokens that the model has not seen."""
        return len(self.token_ids) - self.kv_tokens

    def take(self, chosen: int | ScoredToken) -> TokenItem:
        """Take a token that was chosen: as its frontend is told."""
        token_id = chosen.token_id if isinstance(chosen, ScoredToken) else chosen
        item = self.request_id, self.generated_tokens, token_id
        self.token_ids.append(token_id)
        self.sampling.append(token_id)
        return (*item, chosen.logprob) if isinstance(chosen, ScoredToken) else item

    def branched_off(self) -> None:
        """The block that it was to copy is here."""
        if self.branch is not None:
            self.kv_tokens += self.branch.tokens
            self.branch = None

    def progress(self) -> Progress:
        """What the driver has not heard yet. What was to be copied by now is another's after that."""
        self.branch = None
        new_ids = tuple(self.token_ids[self._reported_tokens :])
        self._reported_tokens = len(self.token_ids)
        return Progress(self.request_id, new_ids, self.saved_tokens)

    def spend(self, phase: Phase, start_s: float, end_s: float, instance_id: str) -> None:
        """Add to the timeline; adjoining spans of a phase become one."""
        if end_s <= start_s:
            return
        last = self._spans[-1] if self._spans else None
        if last is not None and last.phase is phase and start_s - last.end_s < _MERGE_S:
            self._spans[-1] = PhaseSpan(phase, last.start_s, end_s, instance_id)
        else:
            self._spans.append(PhaseSpan(phase, start_s, end_s, instance_id))

    def stall(self, now_s: float) -> None:
        """A step went by without it: its KV is not here, or it has no block to write to."""
        if self._stalled_from_s is None:
            self._stalled_from_s = now_s

    def resume(self, now_s: float, instance_id: str) -> None:
        """It takes part again."""
        if self._stalled_from_s is not None:
            self.spend(Phase.KV, self._stalled_from_s, now_s, instance_id)
            self._stalled_from_s = None

    def take_spans(self) -> tuple[PhaseSpan, ...]:
        """The timeline since the last call."""
        spans, self._spans = tuple(self._spans), []
        return spans
