"""Steps of a turn: who feeds what, the tokens that come of it, and whose fault it is when a step fails."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice

from aegaeon.core.generation import FailureCause
from aegaeon.core.timeline import Phase
from aegaeon.engine.sampling.choice import Choice
from aegaeon.runtime.instance.core.beam_sequence import BeamSequence
from aegaeon.runtime.instance.core.feed import Feed
from aegaeon.runtime.instance.core.instance_model import InstanceModel
from aegaeon.runtime.instance.core.kv_place import KvPlace, room_tokens
from aegaeon.runtime.instance.core.live_sequence import LiveSequence
from aegaeon.runtime.instance.core.members import Members
from aegaeon.runtime.instance.core.outbox import Outbox
from aegaeon.runtime.instance.core.step_engine import StepEngine
from aegaeon.runtime.instance.core.turn import Turn
from aegaeon.runtime.wire import messages as m

logger = logging.getLogger(__name__)


class Stepper:
    """Makes one step of a turn at a time. ``clock`` tells the time in seconds: what a step took is measured by it."""

    def __init__(
        self,
        instance_id: str,
        models: Mapping[str, InstanceModel],
        kv: KvPlace,
        engine: StepEngine,
        check_device: Callable[[], None],
        members: Members,
        outbox: Outbox,
        clock: Callable[[], float],
        chunk_tokens: int,
    ) -> None:
        self._instance_id = instance_id
        self._models = models
        self._kv = kv
        self._engine = engine
        self._check_device = check_device
        self._members = members
        self._outbox = outbox
        self._clock = clock
        self._chunk_tokens = chunk_tokens

    def feeds(self, turn: Turn, now_s: float) -> list[Feed]:
        """What goes into the next step. Raises ``OutOfSlabsError`` where the device has no room for a member's KV."""
        shape = self._models[turn.model].kv_shape
        room = dict.fromkeys((sequence.request_id for sequence in turn.active), 0)
        for sequence in turn.active:
            with self._members.alone(turn, sequence):
                if self._kv.fetch(turn.model, sequence):
                    has_room = room_tokens(shape, self._kv.blocks(sequence))
                    room[sequence.request_id] = min(has_room, shape.step_end(sequence.kv_tokens) or has_room)
        feeds = turn.feeds(self._chunk_tokens, room)
        self._account_stalls(turn, feeds, now_s)
        return turn.alone(feeds)

    def _account_stalls(self, turn: Turn, feeds: Sequence[Feed], now_s: float) -> None:
        fed = {feed.sequence.request_id for feed in feeds}
        for sequence in turn.due:
            if sequence.request_id in fed:
                sequence.resume(now_s, self._instance_id)
            else:
                sequence.stall(now_s)

    def step(self, turn: Turn, feeds: Sequence[Feed]) -> None:
        """Feed members, and send the tokens that come of it.

        Nothing that counts has changed before a step is done, so after one that fails each of its members is tried
        alone, in the steps that follow, and only those that fail alone are at fault."""
        start_s = self._clock()
        if feeds[0].last or not self._models[turn.model].kv_shape.states:  # else it has to catch up first
            turn.trying()
        try:
            chosen = self._compute(turn.model, feeds)
        except Exception as error:
            self._check_device()
            logger.exception(
                "a step of %s with %d requests failed on instance %s", turn.model, len(feeds), self._instance_id
            )
            if len(feeds) > 1:
                self._drop_states(turn, feeds)
                turn.suspect(feeds)
            else:
                self._members.fail_by(turn, error, feeds[0].sequence)
            return
        for feed in feeds:
            feed.sequence.feed(feed.tokens)
        self._kv.write_back(feed.sequence for feed in feeds)
        now_s = self._clock()
        self._account_time(turn, feeds, start_s, now_s)
        self._emit(turn, chosen, now_s)
        turn.stepped(now_s)
        self._members.ask_for_blocks(turn)

    def _drop_states(self, turn: Turn, feeds: Sequence[Feed]) -> None:
        """A step that failed may have changed states here: members go on from what is saved. It is waited for, since
        who is not here is not tried alone."""
        if not self._models[turn.model].kv_shape.states:
            return
        for feed in feeds:
            with self._members.alone(turn, feed.sequence):
                self._kv.saved(feed.sequence)  # counts what has landed by now
                self._kv.evict(feed.sequence.request_id)
                while not self._kv.fetch(turn.model, feed.sequence):
                    pass

    def _compute(self, model: str, feeds: Sequence[Feed]) -> Mapping[Feed, Sequence[Choice | None]]:
        """What is chosen for everyone who is fed to its end, row by row."""
        slices = [
            piece for feed in feeds for piece in feed.sequence.slices(feed.tokens, self._kv.blocks(feed.sequence))
        ]
        wishes = {feed: feed.sequence.wishes for feed in feeds if feed.last}
        chosen = iter(self._engine.step(model, slices, [wish for own in wishes.values() for wish in own]))
        return {feed: list(islice(chosen, len(own))) for feed, own in wishes.items()}

    def _account_time(self, turn: Turn, feeds: Sequence[Feed], start_s: float, end_s: float) -> None:
        turn.clock.add(feeds, end_s - start_s)
        for feed in feeds:
            phase = Phase.PREFILL if feed.prefill else Phase.DECODE
            feed.sequence.spend(phase, start_s, end_s, self._instance_id)

    def _emit(self, turn: Turn, chosen: Mapping[Feed, Sequence[Choice | None]], now_s: float) -> None:
        items: list[tuple[str, m.TokenItem]] = []
        made = []
        for feed, own in chosen.items():
            sequence, choices = feed.sequence, [one for one in own if one is not None]
            if len(choices) < len(own):
                self._refuse_to_guess(turn, sequence)
                continue
            with self._members.alone(turn, sequence):
                items += self._take(turn.model, sequence, choices)
                made.append(feed)
        self._tell_tokens(now_s, items)
        for feed in made:
            with self._members.alone(turn, feed.sequence):
                self._settle(turn, feed)

    def _take(self, model: str, sequence: LiveSequence, choices: Sequence[Choice]) -> list[tuple[str, m.TokenItem]]:
        """What its frontend is told of what was chosen: of a search nothing before its end."""
        if isinstance(sequence, BeamSequence):
            self._kv.copy_blocks(model, sequence, sequence.search(choices))
            return []
        return [(sequence.frontend_id, sequence.take(one)) for one in choices if not isinstance(one, tuple)]

    def _tell_tokens(self, now_s: float, items: Iterable[tuple[str, m.TokenItem]]) -> None:
        """One step's tokens: one message to each frontend."""
        by_frontend: defaultdict[str, list[m.TokenItem]] = defaultdict(list)
        for frontend_id, item in items:
            by_frontend[frontend_id].append(item)
        for frontend_id, own in by_frontend.items():
            self._outbox.tell(frontend_id, m.Tokens(now_s, tuple(own)))

    def _refuse_to_guess(self, turn: Turn, sequence: LiveSequence) -> None:
        reason = (
            f"model {turn.model} gave logits that are not finite (NaN or infinity), so no next token can be chosen: "
            f"its weights, or its dtype, are at fault"
        )
        logger.error("%s: %s", sequence.request_id, reason)
        self._members.fail(turn, sequence, reason, FailureCause.NOT_FINITE)

    def _settle(self, turn: Turn, feed: Feed) -> None:
        """What a new token means for its request: the end, the end of its prefill, or nothing."""
        sequence = feed.sequence
        finished = sequence.end()
        if finished is not None:
            self._kv.saved(sequence)  # counts what has landed by now
            self._members.let_go(turn, sequence)
            self._outbox.tell(sequence.frontend_id, finished)
            self._outbox.report(m.SequenceFinished(turn.turn_id, sequence.progress()))
        elif feed.prefill:
            if turn.keep_prefilled:
                turn.keep(sequence.request_id)
                self._kv.saved(sequence)
                self._outbox.report(m.Prefilled(turn.turn_id, sequence.progress()))
            else:
                turn.depart(sequence.request_id)
                self._kv.save([sequence])
                self._members.part(turn)
