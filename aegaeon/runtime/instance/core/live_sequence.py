"""A request as an instance holds it: its tokens, how many of them are in the KV cache, its block table.

Invariant: ``kv_tokens <= len(token_ids)``; a step feeds ``token_ids[kv_tokens:]`` (one token when decoding, a chunk
of the prompt when prefilling, everything so far when recomputing) and samples once all are fed.
"""

from __future__ import annotations

from collections.abc import Sequence

from aegaeon.core.kv_shape import KvShape
from aegaeon.core.timeline import Phase, PhaseSpan
from aegaeon.engine.attention.sequence_slice import SequenceSlice
from aegaeon.engine.sampling.choice import ScoredToken, Wish
from aegaeon.engine.sampling.sampling_state import SamplingState
from aegaeon.engine.sampling.stop import finish_reason
from aegaeon.runtime.wire.messages import Finished, Member, Progress, SequenceState, TokenItem

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
        self.eos_ids = tuple(eos_ids)
        self.sampling = SamplingState(
            state.sampling,
            self.token_ids[: self.prompt_tokens],
            self.token_ids[self.prompt_tokens :],
            self.eos_ids,
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

    @property
    def context_tokens(self) -> int:
        """Prompt and output so far."""
        return len(self.token_ids)

    def table_tokens(self, more_tokens: int = 0) -> int:
        """Tokens that its block table is to have room for when it has so many more."""
        return self.context_tokens + more_tokens

    # --- steps ------------------------------------------------------------------------------------------------------

    @property
    def rows(self) -> int:
        """Rows of a step that it takes once its prompt has been processed."""
        return 1

    @property
    def attended_tokens(self) -> int:
        """Tokens whose KV its rows read."""
        return self.kv_tokens

    def feedable(self, chunk_tokens: int, room_tokens: int) -> int:
        """Tokens that it can feed in a step: no more than a chunk, and than its blocks have room for."""
        return min(self.unfed_tokens, chunk_tokens, room_tokens - self.kv_tokens)

    def ends_with(self, tokens: int) -> bool:
        """Whether something is chosen once so many tokens have been fed."""
        return tokens == self.unfed_tokens

    def slices(self, tokens: int, blocks: Sequence[int]) -> list[SequenceSlice]:
        """The next ``tokens`` tokens, as they are fed."""
        ids = self.token_ids[self.kv_tokens : self.kv_tokens + tokens]
        return [SequenceSlice(ids, self.kv_tokens, blocks, wants_logits=self.ends_with(tokens))]

    @property
    def wishes(self) -> Sequence[Wish]:
        """What is wanted of its logits, row by row."""
        return [self.sampling]

    def feed(self, tokens: int) -> None:
        """So many tokens have been fed."""
        self.kv_tokens += tokens

    def take(self, chosen: int | ScoredToken) -> TokenItem:
        """Take a token that was chosen: as its frontend is told."""
        token_id = chosen.token_id if isinstance(chosen, ScoredToken) else chosen
        item = self.request_id, self.generated_tokens, token_id
        self.token_ids.append(token_id)
        self.sampling.append(token_id)
        return (*item, chosen.logprob) if isinstance(chosen, ScoredToken) else item

    def end(self) -> Finished | None:
        """What its frontend is told where the output has ended."""
        generated = self.token_ids[self.prompt_tokens :]
        reason = finish_reason(self.sampling.params, self.eos_ids, generated)
        return None if reason is None else Finished(self.request_id, reason, len(generated), self.cached_tokens)

    # --- where its KV is --------------------------------------------------------------------------------------------

    @property
    def saved(self) -> bool:
        """Whether all of its KV is known to be safe in the slab cache."""
        return self.saved_tokens == self.kv_tokens

    def all_saved(self) -> None:
        """It is."""
        self.saved_tokens = self.kv_tokens

    def take_unsaved(self) -> Sequence[int]:
        """Which blocks of its table are to be saved, beside those that ``kv_tokens`` count: from now on they are."""
        return ()

    def forget_unsaved(self) -> None:
        """What was not saved is lost."""
        self.kv_tokens = self.saved_tokens

    def places(self, shape: KvShape) -> Sequence[int]:
        """Which blocks of its table hold KV."""
        return range(shape.blocks_for(self.kv_tokens))

    def branched_off(self) -> None:
        """The block that it was to copy is here."""
        if self.branch is not None:
            self.kv_tokens += self.branch.tokens
            self.branch = None

    # --- what is told -----------------------------------------------------------------------------------------------

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
