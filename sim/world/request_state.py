"""A request in the simulated world: how far it is, where its KV is, where its time went."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from aegaeon.core.request import Request
from aegaeon.memory.prefix_tree import PrefixNode
from aegaeon.memory.shape_slabs import SlabShare
from aegaeon.workload import NamedBlocks
from sim.world.model_facts import SimModel

if TYPE_CHECKING:
    from sim.world.instance import SimInstance

Times = NDArray[np.float64]


class RequestState:
    """Invariant: ``context = prompt + generated``; KV covers at most all tokens but the last.

    ``times``: token times in pieces, in order; most are shared with the other members of a turn. ``saved_s``: when all
    KV written so far is in the slab cache. ``home``: the instance that has a device copy. ``epoch`` grows when its KV
    is dropped, so that what is still under way for it can be told from what comes later. ``shared``: where the tree of
    what is kept has its first tokens, and ``shared_blocks``: how many of its ``blocks`` those are.
    """

    __slots__ = (
        "_shares",
        "after_s",
        "arrive_s",
        "before_s",
        "blocks",
        "content",
        "context",
        "control_s",
        "decode_s",
        "dropping",
        "ended",
        "epoch",
        "error",
        "generated",
        "home",
        "kv_s",
        "kv_tokens",
        "model",
        "place",
        "prefill_s",
        "request",
        "request_id",
        "room_tokens",
        "saved_s",
        "saved_tokens",
        "seated",
        "shared",
        "shared_blocks",
        "target",
        "times",
    )

    def __init__(
        self, request: Request, model: SimModel, target_tokens: int, content: NamedBlocks | None = None
    ) -> None:
        self.request = request
        self.content = content
        self.request_id = request.request_id
        self.model = model
        self.target = target_tokens
        self.generated = 0
        self.context = request.prompt_tokens
        self.kv_tokens = 0
        self.saved_tokens = 0
        self.saved_s = 0.0
        self.arrive_s = 0.0  # when its KV is on the device that it runs on
        self.blocks = 0  # of the slab cache
        self.room_tokens = 0  # that fit into them
        self._shares: list[SlabShare] = []  # the slabs that its own ones are in, in token order
        self.shared: PrefixNode | None = None
        self.shared_blocks = 0
        self.seated = False  # it has been in a turn
        self.home: str | None = None
        self.place: SimInstance | None = None  # whose turn it is in
        self.dropping = False
        self.epoch = 0
        self.times: list[Times] = []
        self.ended = False
        self.error: str | None = None
        self.prefill_s = self.decode_s = self.kv_s = self.control_s = 0.0
        self.before_s = self.after_s = 0.0  # of what was spent, before and after the first token

    @property
    def finished(self) -> bool:
        """Whether its last token is out."""
        return self.generated >= self.target

    def token_times(self) -> Times:
        """All its token times, absolute seconds."""
        return np.concatenate(self.times) if self.times else np.empty(0)

    def take_tokens(self, times: Times) -> None:
        """It produced a token at each of these times."""
        count = len(times)
        self.times.append(times)
        self.generated += count
        self.context += count
        self.kv_tokens = self.context - 1

    def decode(self, times: Times, seconds: float) -> None:
        """It produced a token at each of these times, in steps that took so many seconds in all."""
        self.take_tokens(times)
        self.decode_s += seconds
        self.after_s += seconds

    def spend_prefill(self, seconds: float) -> None:
        self.prefill_s += seconds
        self._cover(seconds)

    def spend_kv(self, seconds: float) -> None:
        self.kv_s += seconds
        self._cover(seconds)

    def _cover(self, seconds: float) -> None:
        if self.generated:
            self.after_s += seconds
        else:
            self.before_s += seconds

    def hold(self, shares: list[SlabShare], blocks: int) -> None:
        """It has so many more blocks of the slab cache: the last ones of ``shares``, which are taken from there."""
        self._count_blocks(blocks)
        _move(blocks, shares, self._shares)

    def let_go(self, blocks: int) -> list[SlabShare]:
        """It has so many blocks less; returns where they are, the last ones first."""
        self._count_blocks(-blocks)
        gone: list[SlabShare] = []
        _move(blocks, self._shares, gone)
        return gone

    def share(self, node: PrefixNode | None, blocks: int) -> None:
        """Its first blocks are the tree's, up to a node; it has none beside them."""
        self.shared, self.shared_blocks = node, blocks
        self._count_blocks(blocks - self.blocks)

    def _count_blocks(self, more: int) -> None:
        self.blocks += more
        self.room_tokens = self.blocks * self.model.block_tokens

    def forget_kv(self) -> None:
        """Its KV is gone everywhere."""
        self.epoch += 1
        self.kv_tokens = self.saved_tokens = 0
        self.saved_s = 0.0

    def parts_s(self, first_token_s: float, finish_s: float) -> tuple[float, float, float, float, float, float]:
        """The six of ``LatencyParts``; what was spent on nothing in particular is waiting (a switch is waiting too)."""
        prefill_wait_s = max(0.0, first_token_s - self.request.arrival_s - self.before_s)
        decode_wait_s = max(0.0, finish_s - first_token_s - self.after_s)
        return prefill_wait_s, self.prefill_s, decode_wait_s, self.decode_s, self.control_s, self.kv_s


def _move(blocks: int, source: list[SlabShare], target: list[SlabShare]) -> None:
    """Move so many blocks from the end of one list to the end of another; neighbours of one slab become one share."""
    while blocks:
        index, count = source.pop()
        if count > blocks:
            source.append((index, count - blocks))
            count = blocks
        blocks -= count
        if target and target[-1][0] == index:
            count += target.pop()[1]
        target.append((index, count))
