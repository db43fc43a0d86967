"""A request as its driver holds it between turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from aegaeon.core.beams import BeamState
from aegaeon.core.kv_shape import KvShape
from aegaeon.core.request import Request
from aegaeon.runtime.node.core.request_state import IN_A_TURN, DriverRequestState, RequestHappening, next_state
from aegaeon.runtime.recovery.suspicion import RequestSuspicion
from aegaeon.runtime.wire.messages import KvBranch, Member, Progress, SequenceState, Submit

_BEING_GIVEN_UP = (DriverRequestState.DROPPING, DriverRequestState.RELEASING, DriverRequestState.UNSETTLED)


@dataclass(slots=True)
class DriverRequest:
    """Mutable state of one request on a node.

    ``home``: the instance that has its newest sequence state, so that a turn there need not send it again.
    ``running_on``: the instance whose turn it is in; ``begun``: it has been in one, and had the KV of
    ``cached_tokens`` of its prompt then. ``epoch`` counts its block tables: after ``DropKv`` the old table lives on
    under its old key until the instance has let go of it. ``first``: the choice of its prompt that it followed.
    ``branch``: lent to it, until its instance has copied it. ``beams``: of a search by beams, as last heard of.
    """

    submit: Submit
    generated_ids: list[int] = field(init=False)
    kv_tokens: int = 0
    prefilled: bool = False
    state: DriverRequestState = DriverRequestState.WAITING
    home: str | None = None
    running_on: str | None = None
    begun: bool = False
    cached_tokens: int = 0
    epoch: int = 0
    first: DriverRequest | None = None
    branch: KvBranch | None = None
    beams: BeamState | None = None
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
    def output_tokens(self) -> int:
        """How long its output is, or each of its beams."""
        return len(self.generated_ids) + (0 if self.beams is None else self.beams.tokens)

    @property
    def context_tokens(self) -> int:
        return len(self.submit.prompt_ids) + self.output_tokens

    def table_tokens(self, shape: KvShape, more_tokens: int = 0) -> int:
        """Tokens that its block table is to have room for when it has so many more."""
        tokens = self.context_tokens + more_tokens
        return shape.forked_tokens(len(self.submit.prompt_ids), tokens, self.submit.request.width)

    def token_ids(self, start: int, end: int) -> Sequence[int]:
        """The request's tokens from one position to another, prompt and output."""
        prompt_ids = self.submit.prompt_ids
        output = slice(max(0, start - len(prompt_ids)), max(0, end - len(prompt_ids)))
        return (*prompt_ids[start:end], *self.generated_ids[output])

    @property
    def free(self) -> bool:
        """Whether nothing of it is being given up."""
        return self.state not in _BEING_GIVEN_UP

    @property
    def runs(self) -> bool:
        """Whether it is a member of a turn, and is to stay one."""
        return self.state in (DriverRequestState.RUNNING, DriverRequestState.STARVED)

    @property
    def releasing(self) -> bool:
        """Whether it is over for its scheduler already."""
        return self.state is DriverRequestState.RELEASING

    @property
    def arrival(self) -> Request:
        """What the scheduler is told of it: what was generated before it came here is prompt like any other."""
        before, request = len(self.submit.generated_ids), self.submit.request
        if not before:
            return request
        left = max(1, request.max_new_tokens - before)
        return replace(request, prompt_tokens=request.prompt_tokens + before, max_new_tokens=left)

    def note(self, happening: RequestHappening) -> None:
        """Something has happened to it. Raises ``TransitionError`` where that cannot be."""
        self.state = next_state(self.request_id, self.state, happening)
        if self.state not in IN_A_TURN:
            self.running_on = None

    def begin(self) -> None:
        """It has its block table for its first turn."""
        self.begun = True
        first = self.submit.cached_tokens
        found = self.kv_tokens + (self.branch.tokens if self.branch is not None else 0)
        self.cached_tokens = min(found, len(self.submit.prompt_ids) - 1) if first is None else first

    def take_for(self, instance_id: str) -> None:
        """It is in a turn of an instance."""
        self.note(RequestHappening.TAKEN)
        self.running_on = instance_id

    def lose_kv(self) -> None:
        """The request's block table is gone."""
        self.home, self.kv_tokens, self.prefilled = None, 0, False
        self.epoch += 1
        self._lose_beams_kv()

    def _lose_beams_kv(self) -> None:
        """Its instance has written to the beams' blocks since it was heard of, or they are gone."""
        self.beams = None if self.beams is None else self.beams.without_kv()

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
        self._lose_beams_kv()

    def advance(self, progress: Progress) -> None:
        """Take what an instance reports."""
        self.generated_ids.extend(progress.new_ids)
        self.kv_tokens = progress.kv_tokens
        self.beams = progress.beams or self.beams
        self.suspicion.note_progress(self.output_tokens, progress.kv_tokens)

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
            self.cached_tokens,
            self.branch,
            self.beams,
        )
