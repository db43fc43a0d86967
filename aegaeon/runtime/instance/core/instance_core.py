"""An instance without I/O: messages of its driver in, one step at a time, and a list of what it has to say out.

Between two steps it takes messages, so a turn can be stopped, extended or robbed of a member after any token.

What goes wrong with a request ends that request, and nobody else's: a step that fails is done again with each member
alone, so only those at fault fail. Only a device that is lost ends the process: then what is called here raises.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import assert_never

from aegaeon.core.event import TurnEndReason
from aegaeon.core.timeline import Phase
from aegaeon.memory.slab_ledger import OutOfSlabsError
from aegaeon.runtime.instance.core.instance_model import InstanceModel
from aegaeon.runtime.instance.core.kv_place import KvPlace
from aegaeon.runtime.instance.core.members import Members
from aegaeon.runtime.instance.core.model_switch import ModelSwitch
from aegaeon.runtime.instance.core.outbox import InstanceSend, Outbox
from aegaeon.runtime.instance.core.step_engine import StepEngine
from aegaeon.runtime.instance.core.stepper import Stepper
from aegaeon.runtime.instance.core.turn import Turn
from aegaeon.runtime.instance.core.weight_store import WeightStore
from aegaeon.runtime.wire import messages as m

logger = logging.getLogger(__name__)

_AboutTurns = m.RunTurn | m.JoinTurn | m.StopTurn | m.GrantBlocks | m.Forget
_AboutState = m.HostWeights | m.EvictModel | m.FetchKv | m.EvictDeviceKv | m.Discard
Instruction = _AboutTurns | _AboutState
"""All that a driver tells an instance but what concerns its rings and its process."""


class InstanceCore:
    """Runs the turns that the driver gives. ``clock`` tells the time in seconds, to measure steps by."""

    def __init__(
        self,
        instance_id: str,
        models: Mapping[str, InstanceModel],
        weights: WeightStore,
        kv: KvPlace,
        engine: StepEngine,
        clock: Callable[[], float],
        chunk_tokens: int,
    ) -> None:
        self._id = instance_id
        self._weights = weights
        self._kv = kv
        self._clock = clock
        self._outbox = Outbox()
        self._models = ModelSwitch(instance_id, weights, self._outbox)
        self._members = Members(instance_id, models, kv, weights.check_device, self._outbox)
        self._stepper = Stepper(
            instance_id,
            models,
            kv,
            engine,
            weights.check_device,
            self._members,
            self._outbox,
            clock,
            chunk_tokens,
        )
        self._turn: Turn | None = None

    @property
    def restless(self) -> bool:
        """Whether something may come to pass that nobody announces: a quota ends, a copy lands."""
        return self._turn is not None or self._weights.loading

    @property
    def request_ids(self) -> tuple[str, ...]:
        """The requests of which it has something."""
        return self._members.request_ids

    def take_sends(self) -> list[InstanceSend]:
        """What it has said since the last call: to be sent in this order."""
        return self._outbox.take()

    def close(self) -> None:
        """Let go of all weights and KV."""
        self._weights.close()
        self._kv.close()

    # --- messages ---------------------------------------------------------------------------------------------------

    def receive(self, message: Instruction, now_s: float) -> None:
        """Take a message of the driver."""
        match message:
            case m.RunTurn():
                self._start(message, now_s)
            case m.JoinTurn():
                self._join(message)
            case m.StopTurn():
                if self._turn is not None and self._turn.turn_id == message.turn_id:
                    self._turn.stopping = True
            case m.GrantBlocks():
                self._members.grant(message)
            case m.Forget():
                self._members.forget(self._turn, message.request_ids)
                self._end_if_drained()
            case _:
                self._receive_state(message)

    def _receive_state(self, message: _AboutState) -> None:
        match message:
            case m.HostWeights():
                if not self._models.take(message):
                    self._end_refused(message.model)
            case m.EvictModel():
                self._models.evict(message.model)
            case m.FetchKv():
                self._members.fetch_ahead(message)
            case m.EvictDeviceKv():
                for request_id in message.request_ids:
                    self._kv.evict(request_id)
            case m.Discard():
                self._members.discard(*message.request_ids)
            case _:
                assert_never(message)

    def return_leases(self) -> None:
        """Say which leases of weights are over."""
        self._models.return_leases()

    # --- a turn's beginning and end ---------------------------------------------------------------------------------

    def _start(self, message: m.RunTurn, now_s: float) -> None:
        assert self._turn is None, "the driver starts a turn only when the last one is over"
        turn = Turn(message.turn_id, message.model, message.quota_s, message.keep_prefilled, message.issued_s)
        turn.received_s = now_s
        turn.switched = self._models.bound != message.model
        self._turn = turn
        self._seat(turn, message)
        for sequence in turn.active:
            sequence.spend(Phase.CONTROL, message.issued_s, now_s, self._id)

    def _join(self, message: m.JoinTurn) -> None:
        if self._turn is not None and self._turn.turn_id == message.turn_id:
            self._seat(self._turn, message)
            return
        # A turn that is over has been reported, and the scheduler finds its latecomers another one; their state stays,
        # since the driver sends it only once.
        self._members.admit(message.turn_id, message.model, (*message.prefill, *message.decode))

    def _seat(self, turn: Turn, message: m.RunTurn | m.JoinTurn) -> None:
        prefilling = self._members.admit(turn.turn_id, turn.model, message.prefill)
        turn.join(prefilling, self._members.admit(turn.turn_id, turn.model, message.decode))

    def _end_refused(self, model: str) -> None:
        """A model's weights cannot be used: nor can its turn go on."""
        if self._turn is not None and self._turn.model == model:
            self._end(self._turn, TurnEndReason.FAILED)

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
        self._members.part(turn)
        members = turn.members
        unsaved = [sequence for sequence in members if not self._kv.saved(sequence)]
        if unsaved or self._turn is not turn:
            return
        for sequence in members:
            self._members.tell_spans(sequence)
        self._turn = None
        progress = tuple(sequence.progress() for sequence in members)
        over = m.TurnOver(turn.turn_id, reason, progress, turn.unfinished, turn.switched, turn.clock.timing)
        self._outbox.report(over)

    # --- steps ------------------------------------------------------------------------------------------------------

    def step(self, now_s: float) -> bool:
        """Do one thing that can be done now; False where there is nothing to do before the next message."""
        turn = self._turn
        if turn is None:
            return self._models.prepare()
        if turn.departing:
            self._members.part(turn)
            self._end_if_drained()
        if turn.ending is not None:
            self._report_end(turn, turn.ending)
            return True
        if not turn.suspecting and (turn.stopping or turn.out_of_quota(now_s)):
            self._end(turn, TurnEndReason.PREEMPTED if turn.stopping else TurnEndReason.QUOTA)
            return self._turn is turn
        if not self._weights.ready(turn.model):
            return False
        if self._models.bound != turn.model:
            return self._switch(turn)
        return self._advance(turn, now_s)

    def _switch(self, turn: Turn) -> bool:
        """Bind the turn's model; False, and the turn is over, where its weights do not fit it."""
        if not self._announced(turn, ()):
            return True
        if not self._models.bind(turn.model):
            self._end_refused(turn.model)
            return False
        now_s = self._clock()
        for sequence in turn.members:
            sequence.spend(Phase.SWITCH, turn.received_s, now_s, self._id)
        return True

    def _advance(self, turn: Turn, now_s: float) -> bool:
        try:
            feeds = self._stepper.feeds(turn, now_s)
        except OutOfSlabsError:  # of the device: the next round packs its batches by what this turn reports
            self._end(turn, TurnEndReason.PREEMPTED)
            return self._turn is turn
        if not feeds:
            self._members.ask_for_blocks(turn)
            self._end_if_drained()
            return bool(turn.departing)
        if not self._announced(turn, tuple(feed.sequence.request_id for feed in feeds)):
            return True
        try:
            self._stepper.step(turn, feeds)
        except Exception as error:
            self._weights.check_device()
            logger.exception("a turn of %s failed on instance %s", turn.model, self._id)
            self._members.fail_by(turn, error, *turn.members)
            self._end(turn, TurnEndReason.FAILED)
        self._end_if_drained()
        return True

    def _announced(self, turn: Turn, request_ids: tuple[str, ...]) -> bool:
        """Whether the driver knows what is done next. Else it is told now, and it is done next time: what ends this
        process before was said is nobody's fault."""
        if turn.attempted == request_ids:
            return True
        turn.attempted = request_ids
        self._outbox.report(m.Attempt(turn.turn_id, request_ids))
        return False
