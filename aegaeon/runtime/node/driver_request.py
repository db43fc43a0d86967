"""A request as its driver holds it between turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from aegaeon.core.request import Request
from aegaeon.runtime.recovery.suspicion import RequestSuspicion
from aegaeon.runtime.wire.messages import Member, SequenceState, Submit


@dataclass(slots=True)
class DriverRequest:
    """Mutable state of one request on a node.

    ``home``: the instance that has its newest sequence state, so that a turn there need not send it again.
    ``running_on``: the instance whose turn it is in; ``begun``: it has been in one. ``epoch`` counts its block tables:
    after ``DropKv`` the old table lives on under its old key until the instance has let go of it.
    """

    submit: Submit
    generated_ids: list[int] = field(init=False)
    kv_tokens: int = 0
    prefilled: bool = False
    home: str | None = None
    running_on: str | None = None
    begun: bool = False
    epoch: int = 0
    dropping: bool = False
    releasing: bool = False
    suspicion: RequestSuspicion = field(default_factory=RequestSuspicion)

    def __post_init__(self) -> None:
        self.generated_ids = list(self.submit.generated_ids)

    @property
    def request_id(self) -> str:
        return self.submit.request.request_id

    @property
    def model(self) -> str:
        return self.submit.request.model

    @property
    def table_key(self) -> str:
        """Key of its block table in the ledger."""
        return f"{self.request_id}#{self.epoch}"

    @property
    def context_tokens(self) -> int:
        return len(self.submit.prompt_ids) + len(self.generated_ids)

    def token_ids(self, start: int, end: int) -> Sequence[int]:
        """Its tokens from one position to another, prompt and output."""
        prompt_ids = self.submit.prompt_ids
        output = slice(max(0, start - len(prompt_ids)), max(0, end - len(prompt_ids)))
        return (*prompt_ids[start:end], *self.generated_ids[output])

    @property
    def free(self) -> bool:
        """Whether it may be put into a turn, as far as the driver knows: nothing of it is being given up."""
        return not (self.releasing or self.dropping)

    @property
    def arrival(self) -> Request:
        """What the scheduler is told of it: what was generated before it came here is prompt like any other."""
        before, request = len(self.submit.generated_ids), self.submit.request
        if not before:
            return request
        left = max(1, request.max_new_tokens - before)
        return replace(request, prompt_tokens=request.prompt_tokens + before, max_new_tokens=left)

    def go_on_from(self, generated_ids: Sequence[int]) -> None:
        """The output so far is ``generated_ids`` and nothing else, whatever was heard before: its client has it.

        KV counts as far as it is of these tokens, and without the last one, which is fed for the next to be sampled.
        """
        same = next(
            (n for n, (own, final) in enumerate(zip(self.generated_ids, generated_ids, strict=False)) if own != final),
            min(len(self.generated_ids), len(generated_ids)),
        )
        self.generated_ids = list(generated_ids)
        self.kv_tokens = min(self.kv_tokens, len(self.submit.prompt_ids) + same, self.context_tokens - 1)

    def advance(self, new_ids: tuple[int, ...], kv_tokens: int) -> None:
        """Take what an instance reports."""
        self.generated_ids.extend(new_ids)
        self.kv_tokens = kv_tokens
        self.suspicion.note_progress(len(self.generated_ids), kv_tokens)

    def member_for(self, instance_id: str, blocks: tuple[int, ...]) -> Member:
        """What the instance needs to run it."""
        state = None if self.home == instance_id else self._state()
        self.home = instance_id
        return Member(self.request_id, blocks, state)

    def _state(self) -> SequenceState:
        return SequenceState(
            self.request_id,
            self.submit.frontend_id,
            (*self.submit.prompt_ids, *self.generated_ids),
            len(self.submit.prompt_ids),
            self.kv_tokens,
            self.submit.sampling,
        )
