"""A request as its driver holds it between turns."""

from __future__ import annotations

from dataclasses import dataclass, field

from aegaeon.runtime.messages import Member, SequenceState, Submit


@dataclass(slots=True)
class DriverRequest:
    """Mutable state of one request on a node.

    ``home``: the instance that has its newest sequence state, so that a turn there need not send it again.
    ``running_on``: the instance whose turn it is in. ``epoch`` counts its block tables: after ``DropKv`` the old
    table lives on under its old key until the instance has let go of it.
    """

    submit: Submit
    generated_ids: list[int] = field(default_factory=list)
    kv_tokens: int = 0
    prefilled: bool = False
    home: str | None = None
    running_on: str | None = None
    turn_id: int | None = None
    epoch: int = 0
    dropping: bool = False
    releasing: bool = False

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

    def advance(self, new_ids: tuple[int, ...], kv_tokens: int) -> None:
        """Take what an instance reports."""
        self.generated_ids.extend(new_ids)
        self.kv_tokens = kv_tokens

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
