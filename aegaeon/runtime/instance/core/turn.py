"""A turn as an instance runs it: its members, what they feed in the next step, when it is over."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from aegaeon.core.event import TurnEndReason
from aegaeon.runtime.instance.core.feed import Feed
from aegaeon.runtime.instance.core.live_sequence import LiveSequence
from aegaeon.runtime.instance.core.turn_clock import TurnClock


class Turn:
    """Mutable state of the turn that an instance is in."""

    def __init__(self, turn_id: int, model: str, quota_s: float | None, keep_prefilled: bool, issued_s: float) -> None:
        self.turn_id = turn_id
        self.model = model
        self.keep_prefilled = keep_prefilled
        self.issued_s = issued_s
        self.received_s = issued_s
        self.switched = False
        self.stopping = False
        self.attempted: tuple[str, ...] | None = None  # what the driver was told that it does
        self.ending: TurnEndReason | None = None  # it is over as soon as what it wrote is safe
        self.clock = TurnClock(model)
        self._quota_s = quota_s
        self._quota_from_s: float | None = None
        self._prefill: dict[str, LiveSequence] = {}
        self._decode: dict[str, LiveSequence] = {}
        self._departing: dict[str, LiveSequence] = {}
        self._suspects: deque[str] = deque()

    def join(self, prefill: Iterable[LiveSequence], decode: Iterable[LiveSequence]) -> None:
        """Members come in, in order."""
        self._prefill.update((sequence.request_id, sequence) for sequence in prefill)
        self._decode.update((sequence.request_id, sequence) for sequence in decode)

    def leave(self, request_id: str) -> bool:
        """A member goes; False when it was not there."""
        places = (self._prefill, self._decode, self._departing)
        return any(place.pop(request_id, None) is not None for place in places)

    def keep(self, request_id: str) -> None:
        """A prefilled member goes on decoding."""
        self._decode[request_id] = self._prefill.pop(request_id)

    def depart(self, request_id: str) -> None:
        """A prefilled member takes part in no more steps; it leaves once its KV is safe."""
        self._departing[request_id] = self._prefill.pop(request_id)

    @property
    def active(self) -> tuple[LiveSequence, ...]:
        """Members with steps to come."""
        return (*self._prefill.values(), *self._decode.values())

    @property
    def members(self) -> tuple[LiveSequence, ...]:
        return (*self.active, *self._departing.values())

    @property
    def departing(self) -> tuple[LiveSequence, ...]:
        """Members that have been prefilled for another instance."""
        return tuple(self._departing.values())

    @property
    def unfinished(self) -> tuple[str, ...]:
        """Members whose prompt is not done."""
        return tuple(self._prefill)

    @property
    def prefilling(self) -> LiveSequence | None:
        """The prompt that is being processed: one at a time, in order."""
        return next(iter(self._prefill.values()), None)

    @property
    def due(self) -> tuple[LiveSequence, ...]:
        """Members that take part in the next step if they can: all but prompts further down the line."""
        prompt = self.prefilling
        return (*self._decode.values(), *([prompt] if prompt is not None else []))

    def feeds(self, chunk_tokens: int, room_tokens: dict[str, int]) -> list[Feed]:
        """The next step: every decoding member that has room for its KV, and a chunk of the first prompt.

        ``room_tokens``: for each member, the tokens that its blocks (in place) can hold.
        """
        feeds = []
        for sequence in self.due:
            tokens = sequence.feedable(chunk_tokens, room_tokens[sequence.request_id])
            if tokens > 0:
                feeds.append(Feed(sequence, tokens, prefill=sequence.request_id in self._prefill))
        return feeds

    def suspect(self, feeds: Sequence[Feed]) -> None:
        """A step of these has failed as a whole: each of them is to be tried alone."""
        self._suspects.extend(feed.sequence.request_id for feed in feeds)

    @property
    def suspecting(self) -> bool:
        """Whether members are to be tried alone. That goes to its end: a turn that was over before would never come
        to the one at fault."""
        return bool(self._suspects)

    def alone(self, feeds: list[Feed]) -> list[Feed]:
        """Of the next step's feeds those that go into it: the next suspect's, or all. Suspects that cannot step, or
        have left, are passed over."""
        while self._suspects:
            own = [feed for feed in feeds if feed.sequence.request_id == self._suspects[0]]
            if own:
                return own
            self._suspects.popleft()
        return feeds

    def trying(self) -> None:
        """A step begins: if it is a suspect's, it is tried by that."""
        if self._suspects:
            self._suspects.popleft()

    def stepped(self, now_s: float) -> None:
        """A step has ended: the quota clock starts after the first."""
        if self._quota_from_s is None:
            self._quota_from_s = now_s

    def out_of_quota(self, now_s: float) -> bool:
        return (
            self._quota_s is not None and self._quota_from_s is not None and now_s - self._quota_from_s >= self._quota_s
        )
