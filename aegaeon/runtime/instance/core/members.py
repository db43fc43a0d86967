"""The requests that an instance has: they come with a turn, or ahead of one, and each may fail alone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from aegaeon.core.generation import FailureCause
from aegaeon.memory.slab_ledger import OutOfSlabsError
from aegaeon.runtime.instance.core.beam_sequence import BeamSequence
from aegaeon.runtime.instance.core.instance_model import InstanceModel
from aegaeon.runtime.instance.core.kv_place import KvPlace, room_tokens
from aegaeon.runtime.instance.core.live_sequence import LiveSequence
from aegaeon.runtime.instance.core.outbox import Outbox
from aegaeon.runtime.instance.core.turn import Turn
from aegaeon.runtime.wire import messages as m

logger = logging.getLogger(__name__)

_NO_TURN = -1


class Members:
    """The sequences, by request. ``check_device`` raises where the device is lost: then nobody is at fault."""

    def __init__(
        self,
        instance_id: str,
        models: Mapping[str, InstanceModel],
        kv: KvPlace,
        check_device: Callable[[], None],
        outbox: Outbox,
    ) -> None:
        self._instance_id = instance_id
        self._models = models
        self._kv = kv
        self._check_device = check_device
        self._outbox = outbox
        self._sequences: dict[str, LiveSequence] = {}
        self._asked_blocks: set[str] = set()

    @property
    def request_ids(self) -> tuple[str, ...]:
        """The requests of which something is here."""
        return tuple(self._sequences)

    # --- coming -----------------------------------------------------------------------------------------------------

    def admit(self, turn_id: int, model: str, members: Iterable[m.Member]) -> list[LiveSequence]:
        """The members as sequences; one that cannot be made fails, alone."""
        admitted = []
        for member in members:
            try:
                admitted.append(self._sequence(model, member))
            except Exception as error:
                self._check_device()
                self.discard(member.request_id)
                reason = f"instance {self._instance_id} cannot take the request for model {model}: {in_a_line(error)}"
                logger.exception("%s: %s", member.request_id, reason)
                self._outbox.report(m.SequenceFailed(turn_id, member.request_id, reason))
        return admitted

    def _sequence(self, model: str, member: m.Member) -> LiveSequence:
        if member.state is not None:
            self._sequences[member.request_id] = _live(member.state, self._models[model])
        sequence = self._sequences[member.request_id]
        sequence.seat(member)
        self._asked_blocks.discard(member.request_id)
        return sequence

    def fetch_ahead(self, message: m.FetchKv) -> None:
        """Where there is no room for somebody's KV now, its turn will bring it in."""
        for sequence in self.admit(_NO_TURN, message.model, message.members):
            try:
                self._kv.fetch(message.model, sequence)
            except OutOfSlabsError:
                self._kv.evict(sequence.request_id)

    # --- blocks -----------------------------------------------------------------------------------------------------

    def grant(self, message: m.GrantBlocks) -> None:
        """A request has got more blocks."""
        sequence = self._sequences.get(message.request_id)
        if sequence is not None:
            sequence.blocks += message.blocks
            self._asked_blocks.discard(message.request_id)

    def ask_for_blocks(self, turn: Turn) -> None:
        """Ask in time: when half a block is left. One question at a time for each member."""
        shape = self._models[turn.model].kv_shape
        for sequence in turn.active:
            needed = sequence.table_tokens(shape.block_tokens // 2)
            if needed > room_tokens(shape, sequence.blocks) and sequence.request_id not in self._asked_blocks:
                self._asked_blocks.add(sequence.request_id)
                self._outbox.report(m.NeedBlocks(turn.turn_id, sequence.request_id, needed))

    # --- going ------------------------------------------------------------------------------------------------------

    def forget(self, turn: Turn | None, request_ids: tuple[str, ...]) -> None:
        """Let go of requests, and say how far they had come."""
        progress = []
        for request_id in request_ids:
            sequence = self._sequences.get(request_id)
            if sequence is not None:
                progress.append(sequence.progress())
                self.let_go(turn, sequence)
        self._outbox.report(m.Forgotten(request_ids, tuple(progress)))

    def let_go(self, turn: Turn | None, sequence: LiveSequence) -> None:
        """Own nothing of a request any more."""
        if turn is not None:
            turn.leave(sequence.request_id)
        self.discard(sequence.request_id)
        self.tell_spans(sequence)

    def discard(self, *request_ids: str) -> None:
        """Own nothing of requests that are in no turn."""
        for request_id in request_ids:
            self._sequences.pop(request_id, None)
            self._asked_blocks.discard(request_id)
            self._kv.evict(request_id)

    def tell_spans(self, sequence: LiveSequence) -> None:
        """Tell the frontend of the request's timeline."""
        spans = sequence.take_spans()
        if spans:
            self._outbox.tell(sequence.frontend_id, m.Spans(sequence.request_id, spans))

    def part(self, turn: Turn) -> None:
        """Let go of prefilled members whose KV is safe: the driver may have another instance go on."""
        for sequence in turn.departing:
            if self._kv.saved(sequence):
                turn.leave(sequence.request_id)
                self._kv.evict(sequence.request_id)
                self.tell_spans(sequence)
                self._outbox.report(m.Prefilled(turn.turn_id, sequence.progress()))

    # --- failing ----------------------------------------------------------------------------------------------------

    def fail(self, turn: Turn, sequence: LiveSequence, reason: str, cause: FailureCause = FailureCause.ENGINE) -> None:
        """One member cannot go on; the others can."""
        turn.leave(sequence.request_id)
        self.discard(sequence.request_id)
        self._outbox.report(m.SequenceFailed(turn.turn_id, sequence.request_id, reason, cause))
        self.tell_spans(sequence)

    def fail_by(self, turn: Turn, error: Exception, *sequences: LiveSequence) -> None:
        """Members cannot go on because of an error."""
        reason = f"model {turn.model} failed on instance {self._instance_id}: {in_a_line(error)}"
        for sequence in sequences:
            self.fail(turn, sequence, reason)

    @contextmanager
    def alone(self, turn: Turn, sequence: LiveSequence) -> Iterator[None]:
        """Work for one member: what it fails of ends that member only."""
        try:
            yield
        except OutOfSlabsError:
            raise  # nobody's fault
        except Exception as error:
            self._check_device()
            logger.exception("%s failed on instance %s", sequence.request_id, self._instance_id)
            self.fail_by(turn, error, sequence)


def _live(state: m.SequenceState, model: InstanceModel) -> LiveSequence:
    search = state.sampling.beams
    return LiveSequence(state, model.eos_ids) if search is None else BeamSequence(state, search, model)


def in_a_line(error: Exception) -> str:
    """An error in one line, for whoever sent the request."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
