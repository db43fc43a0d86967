"""KV attended in device memory: blocks come in from the slab cache before a request's first step, and go out as they
are filled, beside the steps that follow; a turn's end leaves only the blocks that are not full (as on a GPU; the CPU
does it in its copying mode).

The device's KV memory is a slab cache of its own, so a device block and its host block have the same shape and a move
is one copy per block. The order of copies and uses (reference: Aegaeon, SOSP'25): a step waits for its blocks to have
arrived; a block is used again only when no copy out of it is under way; a copy out waits for the step that wrote it; a
request is told to be safe elsewhere, or its blocks to be free, only when no copy of it is under way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch

from aegaeon.core.kv_shape import KvShape
from aegaeon.device.common.protocol import CopyPair, Device, Event, Stream
from aegaeon.engine.attention.kv_arena import KvArena
from aegaeon.engine.attention.state_rows import set_state_tokens, usable_tokens
from aegaeon.memory.block_table import BlockTables
from aegaeon.memory.slab_cache import SlabCache
from aegaeon.memory.slab_ledger import OutOfSlabsError
from aegaeon.runtime.instance.core.live_sequence import LiveSequence

_BATCH_BLOCKS = 32
"""Given to the device at once. Making a copy ready takes the host 5 to 10 us, half of what moving a block takes."""


@dataclass(frozen=True, slots=True)
class _Leaving:
    """Copies out that have begun: of a request's first ``tokens``, all of which are there after ``event``. ``states``:
    of how many tokens the states are that are there then, by their blocks' places in the slab cache."""

    tokens: int
    event: Event
    states: Mapping[int, int]


class DeviceKv:
    """A ``KvPlace``. ``device_memory`` and ``host_memory``: uint8 tensors of whole slabs; shapes by model name.

    What ``device_memory`` has beyond whole slabs takes what padding writes (see ``padding_bytes``).
    """

    def __init__(
        self,
        device: Device,
        device_memory: torch.Tensor,
        host_memory: torch.Tensor,
        slab_bytes: int,
        shapes: Mapping[str, KvShape],
    ) -> None:
        self._device = device
        self._memory = device_memory
        self._host = host_memory
        self._shapes = shapes
        total_bytes = device_memory.numel() // slab_bytes * slab_bytes
        padded = total_bytes < device_memory.numel()
        device_memory[total_bytes:].zero_()  # some backends read it before it is written
        self._arena = KvArena(device_memory, slab_bytes, total_bytes if padded else None)
        slabs = SlabCache(total_bytes, slab_bytes)
        for shape in dict.fromkeys(shapes.values()):
            slabs.register(shape)
        self._tables = BlockTables(slabs)
        self._arriving: dict[str, Event] = {}
        self._leaving: dict[str, _Leaving] = {}

    def arena(self, model: str) -> KvArena:
        return self._arena

    def fetch(self, model: str, sequence: LiveSequence) -> bool:
        request_id = sequence.request_id
        if request_id not in self._tables:
            self._bring_in(self._shapes[model], sequence)
        # The device table follows the host's, which the driver grows.
        self._tables.grow(request_id, len(sequence.blocks) * self._shapes[model].block_tokens)
        event = self._arriving.get(request_id)
        if event is not None and self._device.query(event):
            del self._arriving[request_id]
            sequence.branched_off()
        return request_id not in self._arriving

    def blocks(self, sequence: LiveSequence) -> Sequence[int]:
        return self._tables.blocks(sequence.request_id)

    def copy_blocks(self, model: str, sequence: LiveSequence, copies: Iterable[tuple[int, int]]) -> None:
        blocks = self.blocks(sequence)
        for source, target in copies:
            self._arena.copy_block(self._shapes[model], blocks[source], blocks[target])

    def write_back(self, sequences: Iterable[LiveSequence]) -> None:
        self._send({one: self._unsent(one, self._full_tokens(one)) for one in self._here(sequences)})

    def save(self, sequences: Iterable[LiveSequence]) -> None:
        here = self._here(sequences)
        self._send({one: (*self._unsent(one, one.kv_tokens), *one.take_unsaved()) for one in here}, whole=True)

    def saved(self, sequence: LiveSequence) -> bool:
        if sequence.request_id not in self._tables:
            return True  # nothing of it is here
        leaving = self._leaving.get(sequence.request_id)
        if leaving is not None and self._device.query(leaving.event):
            for block, tokens in leaving.states.items():
                set_state_tokens(self._host, self._tables.shape(sequence.request_id), block, tokens)
            sequence.saved_tokens = leaving.tokens
            del self._leaving[sequence.request_id]
        return sequence.request_id not in self._leaving and sequence.saved

    def evict(self, request_id: str) -> None:
        if request_id not in self._tables:
            return
        event, leaving = self._arriving.pop(request_id, None), self._leaving.pop(request_id, None)
        if event is not None:
            self._device.synchronize(event)
        if leaving is not None:
            self._device.synchronize(leaving.event)
        self._tables.release(request_id)

    def close(self) -> None:
        for request_id in self._tables.request_ids:
            self.evict(request_id)

    def _bring_in(self, shape: KvShape, sequence: LiveSequence) -> None:
        self._tables.add(sequence.request_id, shape)
        try:
            self._tables.grow(sequence.request_id, len(sequence.blocks) * shape.block_tokens)
        except OutOfSlabsError:
            self._tables.release(sequence.request_id)  # or the next look would take its KV for here
            raise
        # What is not in the slab cache is not there at all: it was lost with its device and is computed again.
        sequence.forget_unsaved()
        if shape.states:
            sequence.saved_tokens = usable_tokens(self._host, shape, sequence.blocks, sequence.saved_tokens)
            sequence.forget_unsaved()
        sources = [(place, sequence.blocks[place]) for place in sequence.places(shape)]
        if sequence.branch is not None:
            sources.append((sequence.kv_tokens // shape.block_tokens, sequence.branch.block))
        if not sources:
            return
        size, blocks = shape.content_bytes, self.blocks(sequence)
        pairs = (
            (self._memory[blocks[place] : blocks[place] + size], self._host[here : here + size])
            for place, here in sources
        )
        self._arriving[sequence.request_id] = copy_in_batches(self._device, pairs, Stream.COPY_IN)

    def _here(self, sequences: Iterable[LiveSequence]) -> list[LiveSequence]:
        return [sequence for sequence in sequences if sequence.request_id in self._tables]

    def _full_tokens(self, sequence: LiveSequence) -> int:
        """Tokens in blocks that no step will write to any more."""
        block_tokens = self._tables.shape(sequence.request_id).block_tokens
        return sequence.kv_tokens // block_tokens * block_tokens

    def _sent_tokens(self, sequence: LiveSequence) -> int:
        leaving = self._leaving.get(sequence.request_id)
        return sequence.saved_tokens if leaving is None else leaving.tokens

    def _unsent(self, sequence: LiveSequence, upto: int) -> Sequence[int]:
        """Which blocks of its first tokens changed since they were last sent."""
        shape, sent = self._tables.shape(sequence.request_id), self._sent_tokens(sequence)
        return range(sent // shape.block_tokens, shape.blocks_for(upto)) if upto > sent else ()

    def _send(self, places: Mapping[LiveSequence, Sequence[int]], *, whole: bool = False) -> None:
        """Begin to copy out these blocks of each sequence's table: what it has, or what is full."""
        new = {sequence: own for sequence, own in places.items() if own}
        if not new:
            return
        tokens = {sequence: sequence.kv_tokens if whole else self._full_tokens(sequence) for sequence in new}
        states = {sequence: self._unsent_states(sequence, own, tokens[sequence]) for sequence, own in new.items()}
        self._device.wait(Stream.COPY_OUT, self._device.record(Stream.COMPUTE))
        pairs = (pair for sequence, own in new.items() for pair in self._pairs(sequence, own))
        event = copy_in_batches(self._device, pairs, Stream.COPY_OUT)
        for sequence, upto in tokens.items():
            self._leaving[sequence.request_id] = _Leaving(upto, event, states[sequence])

    def _pairs(self, sequence: LiveSequence, places: Iterable[int]) -> Iterator[CopyPair]:
        """Blocks, and their places in the slab cache."""
        here, size = self.blocks(sequence), self._tables.shape(sequence.request_id).content_bytes
        for place in places:
            source, there = here[place], sequence.blocks[place]
            yield self._host[there : there + size], self._memory[source : source + size]

    def _unsent_states(self, sequence: LiveSequence, places: Iterable[int], upto: int) -> dict[int, int]:
        """The states of these blocks are nobody's while they are overwritten. Those that are on their way come too."""
        shape = self._tables.shape(sequence.request_id)
        if not shape.states:
            return {}
        size = shape.block_tokens
        states = {sequence.blocks[place]: min((place + 1) * size, upto) for place in places}
        for there in states:
            set_state_tokens(self._host, shape, there, 0)
        leaving = self._leaving.get(sequence.request_id)
        return states if leaving is None else {**leaving.states, **states}


def copy_in_batches(device: Device, pairs: Iterable[CopyPair], stream: Stream) -> Event:
    """Begin copies that do not touch each other's bytes, some at a time, so that those that are given move while others
    are made ready. All have landed when the event has happened: a stream is in order."""
    rest, event = iter(pairs), None
    while batch := list(islice(rest, _BATCH_BLOCKS)):
        event = device.copy_many(batch, stream)
    return device.record(stream) if event is None else event


def padding_bytes(shapes: Iterable[KvShape]) -> int:
    """Device memory beyond the slabs that steps with padding need."""
    return max(shape.block_bytes for shape in shapes)
