"""An instance: runs the turns that its driver gives it, one step after the other, and streams the tokens.

A plain class: it knows nothing of Ray. Between two steps it takes messages, so a turn can be stopped, extended or
robbed of a member after any token.

What goes wrong with a request ends that request, and nobody else's: a step that fails is done again with each member
alone, so only those at fault fail. Only a device that is lost ends the process.
"""

from __future__ import annotations

import logging
import select
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import assert_never

from aegaeon.core.event import TurnEndReason
from aegaeon.core.generation import FailureCause
from aegaeon.core.kv_shape import KvShape
from aegaeon.core.timeline import Phase
from aegaeon.engine.attention.batch import SequenceSlice
from aegaeon.engine.sampling.sampler import TokenSampler
from aegaeon.engine.sampling.stop import finish_reason
from aegaeon.memory.slab_ledger import OutOfSlabsError
from aegaeon.runtime.instance.kv_place import KvPlace, room_tokens
from aegaeon.runtime.instance.ordered_reports import OrderedReports
from aegaeon.runtime.instance.sequence import Sequence
from aegaeon.runtime.instance.token_sinks import TokenSinks
from aegaeon.runtime.instance.turn import Feed, Turn
from aegaeon.runtime.instance.turn_clock import TurnClock
from aegaeon.runtime.instance.weight_store import WeightError, WeightStore
from aegaeon.runtime.recovery.step_pace import StepPace
from aegaeon.runtime.wire import messages as m
from aegaeon.runtime.wire.clock import Clock
from aegaeon.runtime.wire.link import Link
from aegaeon.runtime.wire.model_failure import FailureKind, failure_kind
from aegaeon.runtime.wire.pulse import LoopPulse, NoPulse

logger = logging.getLogger(__name__)

_NO_TURN = -1

# How soon a turn that cannot step is looked at again (its quota may end, a copy may land), and a full ring retried.
_RECHECK_S = 0.002


@dataclass(frozen=True, slots=True)
class InstanceModel:
    """What an instance must know of a model beyond its weights."""

    name: str
    kv_shape: KvShape
    eos_ids: tuple[int, ...]


class Instance:
    """The loop of one instance process."""

    def __init__(
        self,
        instance_id: str,
        models: Mapping[str, InstanceModel],
        weights: WeightStore,
        kv: KvPlace,
        driver: Link[m.ToInstance, m.FromInstance],
        sinks: TokenSinks,
        clock: Clock,
        chunk_tokens: int,
        sampler: TokenSampler,
        pulse: LoopPulse | None = None,
    ) -> None:
        self._id = instance_id
        self._models = models
        self._weights = weights
        self._kv = kv
        self._driver = OrderedReports(driver, sinks)
        self._sinks = sinks
        self._clock = clock
        self._chunk_tokens = chunk_tokens
        self._sampler = sampler
        self._pulse = pulse or NoPulse()
        self._pace = StepPace()
        self._sequences: dict[str, Sequence] = {}
        self._asked_blocks: dict[str, int] = {}
        self._turn: Turn | None = None
        self._turn_clock = TurnClock("")
        self._bound: str | None = None
        self._running = True

    # --- the loop ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Take messages and step until told to shut down."""
        may_go_on = False
        while self._running:
            self._pulse.wait()
            self._wait(0.0 if may_go_on else None)
            self._pulse.work()
            may_go_on = self.go_on()
        self._weights.close()
        self._kv.close()

    def go_on(self) -> bool:
        """Take the messages that are there and make a step; False when there is nothing to do but wait for more."""
        for message in self._driver.drain():
            self._handle(message)
        for model, lease_id in self._weights.collect_returned():
            self._driver.send(m.WeightsReturned(model, lease_id))
        self._sinks.flush()
        self._driver.flush()
        return self._advance() if self._turn is not None else self._prepare()

    def _prepare(self) -> bool:
        """Use an idle moment; what fails ahead of time is left to fail when it is needed."""
        try:
            return self._weights.prepare_one()
        except Exception:
            self._weights.check_device()
            logger.exception("instance %s cannot prepare something", self._id)
            return True

    def _wait(self, timeout_s: float | None) -> None:
        fds = [self._driver.data_fd, *self._sinks.blocked_fds]
        if self._driver.pending:
            fds.append(self._driver.room_fd)
        if timeout_s is None and (self._turn is not None or self._weights.loading or len(fds) > 1):
            timeout_s = _RECHECK_S
        poll = select.poll()  # select() takes no descriptor above 1023
        for fd in fds:
            poll.register(fd, select.POLLIN)
        poll.poll(None if timeout_s is None else timeout_s * 1000)

    def _handle(self, message: m.ToInstance) -> None:
        match message:
            case m.RunTurn():
                self._start(message)
            case m.JoinTurn():
                self._join(message)
            case m.StopTurn():
                if self._turn is not None and self._turn.turn_id == message.turn_id:
                    self._turn.stopping = True
            case m.GrantBlocks():
                self._grant(message)
            case m.Forget():
                self._forget(message.request_ids)
            case _:
                self._handle_state(message)

    def _handle_state(
        self,
        message: m.HostWeights
        | m.EvictModel
        | m.FetchKv
        | m.EvictDeviceKv
        | m.Discard
        | m.AttachFrontend
        | m.DetachFrontend
        | m.Shutdown,
    ) -> None:
        match message:
            case m.HostWeights():
                self._take_weights(message)
            case m.EvictModel():
                self._evict(message.model)
            case m.FetchKv():
                self._fetch_ahead(message)
            case m.EvictDeviceKv():
                for request_id in message.request_ids:
                    self._kv.evict(request_id)
            case m.Discard():
                for request_id in message.request_ids:
                    self._discard(request_id)
            case _:
                self._handle_other(message)

    def _handle_other(self, message: m.AttachFrontend | m.DetachFrontend | m.Shutdown) -> None:
        match message:
            case m.AttachFrontend():
                self._sinks.attach(message.frontend_id, message.address)
            case m.DetachFrontend():
                self._sinks.detach(message.frontend_id)
            case m.Shutdown():
                self._running = False
            case _:
                assert_never(message)

    # --- turns ------------------------------------------------------------------------------------------------------

    def _start(self, message: m.RunTurn) -> None:
        assert self._turn is None, "the driver starts a turn only when the last one is over"
        turn = Turn(message.turn_id, message.model, message.quota_s, message.keep_prefilled, message.issued_s)
        turn.received_s = self._clock.now_s()
        turn.switched = self._bound != message.model
        self._turn, self._turn_clock = turn, TurnClock(turn.model)
        self._seat(turn, message.prefill, message.decode, message.issued_s)

    def _join(self, message: m.JoinTurn) -> None:
        if self._turn is not None and self._turn.turn_id == message.turn_id:
            self._seat(self._turn, message.prefill, message.decode, None)
            return
        # A turn that is over has been reported, and the scheduler finds its latecomers another one; their state stays,
        # since the driver sends it only once.
        self._admit(message.turn_id, message.model, (*message.prefill, *message.decode))

    def _seat(
        self, turn: Turn, prefill: tuple[m.Member, ...], decode: tuple[m.Member, ...], issued_s: float | None
    ) -> None:
        now_s = self._clock.now_s()
        prefilling = self._admit(turn.turn_id, turn.model, prefill)
        decoding = self._admit(turn.turn_id, turn.model, decode)
        for sequence in (*prefilling, *decoding):
            if issued_s is not None:
                sequence.spend(Phase.CONTROL, issued_s, now_s, self._id)
        turn.join(prefilling, decoding)

    def _admit(self, turn_id: int, model: str, members: tuple[m.Member, ...]) -> list[Sequence]:
        """The members as sequences; one that cannot be made fails, alone."""
        admitted = []
        for member in members:
            try:
                admitted.append(self._sequence(model, member))
            except Exception as error:
                self._weights.check_device()
                self._discard(member.request_id)
                reason = f"instance {self._id} cannot take the request for model {model}: {_told(error)}"
                logger.exception("%s: %s", member.request_id, reason)
                self._driver.send(m.SequenceFailed(turn_id, member.request_id, reason))
        return admitted

    def _sequence(self, model: str, member: m.Member) -> Sequence:
        if member.state is not None:
            self._sequences[member.request_id] = Sequence(member.state, self._models[model].eos_ids)
        sequence = self._sequences[member.request_id]
        sequence.seat(member)
        self._asked_blocks.pop(member.request_id, None)
        return sequence

    def _grant(self, message: m.GrantBlocks) -> None:
        sequence = self._sequences.get(message.request_id)
        if sequence is not None:
            sequence.blocks += message.blocks
            self._asked_blocks.pop(message.request_id, None)

    def _fetch_ahead(self, message: m.FetchKv) -> None:
        """Where there is no room for somebody's KV now, its turn will bring it in."""
        for sequence in self._admit(_NO_TURN, message.model, message.members):
            try:
                self._kv.fetch(message.model, sequence)
            except OutOfSlabsError:
                self._kv.evict(sequence.request_id)

    def _forget(self, request_ids: tuple[str, ...]) -> None:
        progress = []
        for request_id in request_ids:
            sequence = self._sequences.get(request_id)
            if sequence is not None:
                progress.append(sequence.progress())
                self._let_go(sequence)
        self._driver.send(m.Forgotten(request_ids, tuple(progress)))
        self._end_if_drained()

    def _let_go(self, sequence: Sequence) -> None:
        """Own nothing of a request any more."""
        if self._turn is not None:
            self._turn.leave(sequence.request_id)
        self._discard(sequence.request_id)
        self._send_spans(sequence)

    def _discard(self, request_id: str) -> None:
        self._sequences.pop(request_id, None)
        self._asked_blocks.pop(request_id, None)
        self._kv.evict(request_id)

    def _send_spans(self, sequence: Sequence) -> None:
        spans = sequence.take_spans()
        if spans:
            self._sinks.send(sequence.frontend_id, m.Spans(sequence.request_id, spans))

    def _end_if_drained(self) -> None:
        if self._turn is not None and not self._turn.members:
            self._end(self._turn, TurnEndReason.DRAINED)

    def _end(self, turn: Turn, reason: TurnEndReason) -> None:
        """Take no more steps; the driver hears of it when all that the members have is safe: maybe now."""
        if turn.ending is None:
            turn.ending = reason
            self._kv.save(turn.members)
        self._report_end(turn, turn.ending)

    def _report_end(self, turn: Turn, reason: TurnEndReason) -> None:
        self._part(turn)
        members = turn.members
        unsaved = [sequence for sequence in members if not self._kv.saved(sequence)]
        if unsaved or self._turn is not turn:
            return
        for sequence in members:
            self._send_spans(sequence)
        self._turn = None
        progress = tuple(sequence.progress() for sequence in members)
        timing = self._turn_clock.timing
        self._driver.send(m.TurnOver(turn.turn_id, reason, progress, turn.unfinished, turn.switched, timing))

    def _part(self, turn: Turn) -> None:
        """Let go of prefilled members whose KV is safe: the driver may have another instance go on."""
        for sequence in turn.departing:
            if self._kv.saved(sequence):
                turn.leave(sequence.request_id)
                self._kv.evict(sequence.request_id)
                self._send_spans(sequence)
                self._driver.send(m.Prefilled(turn.turn_id, sequence.progress()))

    # --- weights ----------------------------------------------------------------------------------------------------

    def _take_weights(self, message: m.HostWeights) -> None:
        self._evict(message.model)  # what is there of it was given up with the model when it failed elsewhere
        try:
            self._weights.take(message)
        except WeightError as error:
            self._refuse(message.model, message.lease_id, str(error), failure_kind(error))
        except Exception as error:
            self._weights.check_device()
            logger.exception("instance %s cannot take the weights of %s", self._id, message.model)
            reason = f"model {message.model} cannot be loaded: {_told(error)}"
            self._refuse(message.model, message.lease_id, reason, failure_kind(error))

    def _refuse(self, model: str, lease_id: int | None, reason: str, kind: FailureKind) -> None:
        self._driver.send(m.WeightsRefused(model, lease_id, reason, kind))
        if self._turn is not None and self._turn.model == model:
            self._end(self._turn, TurnEndReason.FAILED)

    def _evict(self, model: str) -> None:
        if self._bound == model:
            self._bound = None
        self._weights.evict(model)

    # --- steps ------------------------------------------------------------------------------------------------------

    def _advance(self) -> bool:
        """Do what the turn can do now; False when it must wait for a message."""
        turn = self._turn
        assert turn is not None
        if turn.departing:
            self._part(turn)
            self._end_if_drained()
        if turn.ending is not None:
            self._report_end(turn, turn.ending)
            return True
        now_s = self._clock.now_s()
        if turn.stopping or turn.out_of_quota(now_s):
            self._end(turn, TurnEndReason.PREEMPTED if turn.stopping else TurnEndReason.QUOTA)
            return self._turn is turn
        if not self._weights.ready(turn.model):
            return False
        if self._bound != turn.model and not self._switch(turn):
            return False
        try:
            feeds = self._feeds(turn)
        except OutOfSlabsError:  # of the device: the next round packs its batches by what this turn reports
            self._end(turn, TurnEndReason.PREEMPTED)
            return self._turn is turn
        if not feeds:
            self._ask_for_blocks(turn)
            self._end_if_drained()
            return bool(turn.departing)
        self._announce(turn, tuple(feed.sequence.request_id for feed in feeds))
        try:
            self._step(turn, feeds)
        except Exception as error:
            self._weights.check_device()
            logger.exception("a turn of %s failed on instance %s", turn.model, self._id)
            self._fail(turn, self._failure(turn, error))
        return True

    def _fail(self, turn: Turn, reason: str) -> None:
        """The turn's members cannot go on; the instance can."""
        for sequence in turn.members:
            self._fail_sequence(turn, sequence, reason)
        self._end(turn, TurnEndReason.FAILED)

    def _fail_sequence(
        self, turn: Turn, sequence: Sequence, reason: str, cause: FailureCause = FailureCause.ENGINE
    ) -> None:
        """One member cannot go on; the others can."""
        turn.leave(sequence.request_id)
        self._discard(sequence.request_id)
        self._driver.send(m.SequenceFailed(turn.turn_id, sequence.request_id, reason, cause))
        self._send_spans(sequence)

    @contextmanager
    def _alone(self, turn: Turn, sequence: Sequence) -> Iterator[None]:
        """Work for one member: what it fails of ends that member only."""
        try:
            yield
        except OutOfSlabsError:
            raise  # nobody's fault
        except Exception as error:
            self._weights.check_device()
            logger.exception("%s failed on instance %s", sequence.request_id, self._id)
            self._fail_sequence(turn, sequence, self._failure(turn, error))

    def _failure(self, turn: Turn, error: Exception) -> str:
        return f"model {turn.model} failed on instance {self._id}: {_told(error)}"

    def _switch(self, turn: Turn) -> bool:
        """Bind the turn's model; False, and the turn is over, where its weights do not fit it."""
        self._announce(turn, ())
        try:
            self._weights.bind(turn.model)
        except Exception as error:
            logger.exception("model %s cannot be bound on instance %s", turn.model, self._id)
            self._weights.check_device()
            self._evict(turn.model)
            self._refuse(turn.model, None, str(error) or type(error).__name__, failure_kind(error))
            return False
        self._bound = turn.model
        now_s = self._clock.now_s()
        for sequence in turn.members:
            sequence.spend(Phase.SWITCH, turn.received_s, now_s, self._id)
        return True

    def _announce(self, turn: Turn, request_ids: tuple[str, ...]) -> None:
        if turn.attempted != request_ids:
            turn.attempted = request_ids
            self._driver.send(m.Attempt(turn.turn_id, request_ids))

    def _feeds(self, turn: Turn) -> list[Feed]:
        shape = self._models[turn.model].kv_shape
        room = dict.fromkeys((sequence.request_id for sequence in turn.active), 0)
        for sequence in turn.active:
            with self._alone(turn, sequence):
                if self._kv.fetch(turn.model, sequence):
                    room[sequence.request_id] = room_tokens(shape, self._kv.blocks(sequence))
        feeds = turn.feeds(self._chunk_tokens, room)
        self._account_stalls(turn, feeds)
        return feeds

    def _account_stalls(self, turn: Turn, feeds: list[Feed]) -> None:
        now_s = self._clock.now_s()
        fed = {feed.sequence.request_id for feed in feeds}
        for sequence in turn.due:
            if sequence.request_id in fed:
                sequence.resume(now_s, self._id)
            else:
                sequence.stall(now_s)

    def _step(self, turn: Turn, feeds: list[Feed]) -> None:
        start_s = self._clock.now_s()
        fed, together = self._compute(turn, feeds)
        sampled = {feed: token for feed, token in fed.items() if feed.last}
        for feed in fed:
            feed.sequence.kv_tokens += feed.tokens
        self._kv.write_back(feed.sequence for feed in fed)
        now_s = self._clock.now_s()
        if together:  # else the time is that of several steps
            self._turn_clock.add(feeds, now_s - start_s)
        for feed in fed:
            phase = Phase.PREFILL if feed.prefill else Phase.DECODE
            feed.sequence.spend(phase, start_s, now_s, self._id)
        self._emit(turn, sampled, now_s)
        turn.stepped(now_s)
        self._ask_for_blocks(turn)
        self._end_if_drained()

    def _compute(self, turn: Turn, feeds: list[Feed]) -> tuple[dict[Feed, int | None], bool]:
        """Feed a batch, and choose the next token of each that is fed to its end; None for the others, and where there
        is none to choose. Changes nothing but KV that is not counted yet, so a batch that fails is done again one by
        one, and only those that fail alone are left out, and have failed. Also whether one step did it all."""
        start_s, fed_tokens = self._clock.now_s(), sum(feed.tokens for feed in feeds)
        self._pulse.work(self._pace.expected_s(turn.model, fed_tokens))
        try:
            chosen = self._compute_batch(turn, feeds)
        except Exception as error:
            self._weights.check_device()
            logger.exception("a step of %s with %d requests failed on instance %s", turn.model, len(feeds), self._id)
            if len(feeds) == 1:
                self._fail_sequence(turn, feeds[0].sequence, self._failure(turn, error))
                return {}, False
        else:
            self._pace.note(turn.model, fed_tokens, self._clock.now_s() - start_s)
            return chosen, True
        tokens: dict[Feed, int | None] = {}
        for feed in feeds:
            self._announce(turn, (feed.sequence.request_id,))
            tokens |= self._compute(turn, [feed])[0]
        return tokens, False

    def _compute_batch(self, turn: Turn, feeds: list[Feed]) -> dict[Feed, int | None]:
        slices = [
            SequenceSlice(
                feed.sequence.token_ids[feed.sequence.kv_tokens : feed.sequence.kv_tokens + feed.tokens],
                feed.sequence.kv_tokens,
                self._kv.blocks(feed.sequence),
                wants_logits=feed.last,
            )
            for feed in feeds
        ]
        logits = self._weights.runner(turn.model).step(slices, self._kv.arena(turn.model))
        sampled = [feed for feed in feeds if feed.last]
        token_ids = self._sampler.sample(logits, [feed.sequence.sampling for feed in sampled]) if sampled else []
        return dict.fromkeys(feeds) | dict(zip(sampled, token_ids, strict=True))

    def _emit(self, turn: Turn, tokens: Mapping[Feed, int | None], now_s: float) -> None:
        items, made = [], []
        for feed, token_id in tokens.items():
            sequence = feed.sequence
            if token_id is None:
                self._refuse_to_guess(turn, sequence)
                continue
            items.append((sequence.frontend_id, sequence.request_id, sequence.generated_tokens, token_id))
            sequence.append(token_id)
            made.append(feed)
        self._sinks.send_tokens(now_s, items)
        for feed in made:
            with self._alone(turn, feed.sequence):
                self._settle(turn, feed)

    def _refuse_to_guess(self, turn: Turn, sequence: Sequence) -> None:
        reason = (
            f"model {turn.model} gave logits that are not finite (NaN or infinity), so no next token can be chosen: "
            f"its weights, or its dtype, are at fault"
        )
        logger.error("%s: %s", sequence.request_id, reason)
        self._fail_sequence(turn, sequence, reason, FailureCause.NOT_FINITE)

    def _settle(self, turn: Turn, feed: Feed) -> None:
        """What a new token means for its request: the end, the end of its prefill, or nothing."""
        sequence = feed.sequence
        generated = sequence.token_ids[sequence.prompt_tokens :]
        reason = finish_reason(sequence.sampling.params, self._models[turn.model].eos_ids, generated)
        if reason is not None:
            self._let_go(sequence)
            self._sinks.send(sequence.frontend_id, m.Finished(sequence.request_id, reason, len(generated)))
            self._driver.send(m.SequenceFinished(turn.turn_id, sequence.request_id))
        elif feed.prefill:
            if turn.keep_prefilled:
                turn.keep(sequence.request_id)
                self._kv.saved(sequence)  # counts what has landed by now
                self._driver.send(m.Prefilled(turn.turn_id, sequence.progress()))
            else:
                turn.depart(sequence.request_id)
                self._kv.save([sequence])
                self._part(turn)

    def _ask_for_blocks(self, turn: Turn) -> None:
        """Ask in time: when half a block is left. One question at a time for each member."""
        shape = self._models[turn.model].kv_shape
        for sequence in turn.active:
            needed = len(sequence.token_ids) + shape.block_tokens // 2
            if needed > room_tokens(shape, sequence.blocks) and sequence.request_id not in self._asked_blocks:
                self._asked_blocks[sequence.request_id] = needed
                self._driver.send(m.NeedBlocks(turn.turn_id, sequence.request_id, needed))


def _told(error: Exception) -> str:
    """An error in one line, for whoever sent the request."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
