"""The block tables of a node's requests, and who waits for a block."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

from aegaeon.core.event import KvExhausted
from aegaeon.core.kv_shape import KvShape
from aegaeon.core.model import ModelSpec
from aegaeon.memory.errors import LedgerError
from aegaeon.memory.slab_ledger import OutOfSlabsError
from aegaeon.memory.stored_block import StoredBlock
from aegaeon.runtime.node.core.desk import Desk
from aegaeon.runtime.node.core.driver_request import DriverRequest
from aegaeon.runtime.node.core.instances import Instances
from aegaeon.runtime.node.core.request_state import DriverRequestState, RequestHappening
from aegaeon.runtime.wire import messages as m

# Where nothing is reused: who has not come by then for the KV that another driver has left will not come.
_KEEP_REST_S = 300.0

logger = logging.getLogger(__name__)

TokenIds = Callable[[int, int], Sequence[int]]
"""``ids(start, end)``: a request's tokens from one position to another."""


class KvLedger(Protocol):
    """The books of a node's slab cache, by the keys of block tables."""

    @property
    def counts(self) -> m.KvCounts: ...

    @property
    def reuses(self) -> bool: ...

    @property
    def tables(self) -> tuple[str, ...]: ...

    def __contains__(self, key: object) -> bool: ...

    def open(self, key: str, model: str, shape: KvShape, names: m.KvNames, token_ids: Sequence[int]) -> int: ...

    def note(self, key: str, token_ids: TokenIds, kv_tokens: int) -> int: ...

    def forget_rest(self) -> None: ...

    def branch(self, key: str, token_ids: Sequence[int]) -> m.KvBranch | None: ...

    def branch_beside(self, key: str, other: str, start: int, tokens: int) -> m.KvBranch | None: ...

    def take_back(self, branch: m.KvBranch) -> None: ...

    def extend(self, key: str, tokens: int) -> tuple[int, ...]: ...

    def blocks(self, key: str) -> tuple[int, ...]: ...

    def names(self, key: str) -> Sequence[bytes]: ...

    def named(self, key: str) -> Sequence[bytes]: ...

    def show(self, name: bytes) -> StoredBlock | None: ...

    def hide(self, block: StoredBlock) -> bool: ...

    def free(self, key: str) -> None: ...

    def check_integrity(self) -> None: ...


class Blocks:
    """Gives blocks to members of turns; those that there are none for are starved until some come free.

    What is found of a request's tokens when it comes is held for it from then on, unless somebody under way would
    starve for that.
    """

    def __init__(self, desk: Desk, kv: KvLedger, models: Mapping[str, ModelSpec], instances: Instances) -> None:
        self._desk = desk
        self._kv = kv
        self._models = models
        self._instances = instances
        self._ahead: dict[str, DriverRequest] = {}  # those that wait for their first turn and hold something
        self._starved: dict[str, tuple[DriverRequest, int]] = {}  # who waits, and for room for how many tokens
        self.prompt_tokens = self.cached_tokens = 0  # of all requests that have begun
        desk.timers.at(float("-inf"), self._start)

    def _start(self) -> None:
        self._desk.timers.at(self._desk.now_s + _KEEP_REST_S, self._kv.forget_rest)

    @property
    def shares(self) -> bool:
        """Whether requests share the KV of equal tokens."""
        return self._kv.reuses

    def find(self, request: DriverRequest) -> None:
        """Hold what KV there is of the tokens of a request that comes."""
        if request.model not in self._models:
            return
        self._open(request)
        if request.kv_tokens:
            self._ahead[request.request_id] = request
            if request.submit.generated_ids:
                found = f"the KV of {request.kv_tokens} of its {request.context_tokens} tokens"
                logger.info("request %s of another driver finds %s", request.request_id, found)
        else:
            self._kv.free(request.table_key)

    def _open(self, request: DriverRequest) -> None:
        shape, token_ids = self._models[request.model].kv_shape, request.token_ids(0, request.context_tokens)
        names = request.submit.names
        request.kv_tokens = self._kv.open(request.table_key, request.model, shape, names, token_ids)

    def note(self, request: DriverRequest) -> None:
        """How much of a request's KV is safe has changed; what was to be copied for it is there, or never will be."""
        self._take_back(request)
        request.kv_tokens = self._kv.note(request.table_key, request.token_ids, request.kv_tokens)

    def seat(self, request: DriverRequest) -> bool:
        """See to it that a new member of a turn can go on; False where it is starved."""
        if self._ahead.pop(request.request_id, None) is not None:
            self._kv.free(request.table_key)  # there may be more by now
        opens = request.table_key not in self._kv
        if opens:
            self._open(request)
        shape = self._models[request.model].kv_shape
        needed = request.table_tokens(shape)
        for tokens in (request.table_tokens(shape, shape.block_tokens), needed):
            if self._extend(request, tokens) is not None:
                if opens:
                    self._branch_off(request, shape)
                return True
        self._starve(request, needed)
        return False

    def _branch_off(self, request: DriverRequest, shape: KvShape) -> None:
        """Find a block to copy of whose tokens some are the request's next; the last of all is fed again."""
        if request.beams is not None:
            return  # what they feed begins with a block of each one's own
        if shape.states:
            return  # a block's state is of all of its tokens
        start, end = request.kv_tokens, min(request.kv_tokens + shape.block_tokens, request.context_tokens - 1)
        first, beside = request.first, 0
        if first is not None and first.table_key in self._kv:
            beside = min(first.kv_tokens, len(first.submit.prompt_ids), end) - start
        if first is not None and beside > 0:
            request.branch = self._kv.branch_beside(request.table_key, first.table_key, start, beside)
        elif start < end:
            request.branch = self._kv.branch(request.table_key, request.token_ids(start, end))

    def _take_back(self, request: DriverRequest) -> None:
        if request.branch is not None:
            self._kv.take_back(request.branch)
            request.branch = None

    def begin(self, request: DriverRequest) -> None:
        """A request has been seated for the first time: what was found of its prompt is what it needs not compute."""
        request.begin()
        if request.submit.cached_tokens is not None:
            return  # another driver has counted it
        self.prompt_tokens += len(request.submit.prompt_ids)
        self.cached_tokens += request.cached_tokens

    def need(self, request: DriverRequest, tokens: int) -> bool:
        """A member will soon hold so many tokens; False where it is starved."""
        if not self._grant(request, tokens):
            self._starve(request, tokens)
            return False
        if self._waits(request):
            self._feed(request)
        return True

    def table(self, request: DriverRequest) -> tuple[int, ...]:
        """A request's blocks, in the order of its tokens."""
        return self._kv.blocks(request.table_key)

    def free(self, request: DriverRequest) -> None:
        """Nobody touches a request's blocks any more: others get them."""
        self._take_back(request)
        self._kv.free(request.table_key)
        self._ahead.pop(request.request_id, None)
        self._starved.pop(request.request_id, None)
        self.feed_starved()

    def report_starved(self) -> None:
        """What was freed was not enough for them (or of another shape)."""
        for request, _ in tuple(self._starved.values()):
            incarnation = self._instances.running(request)
            if self._waits(request) and incarnation is not None and incarnation.turn_id is not None:
                self._desk.dispatch(KvExhausted(incarnation.instance_id, incarnation.turn_id, request.request_id))

    def check_idle(self, besides: Collection[str]) -> None:
        """Raises ``LedgerError`` where the books do not balance, or something is left though there is no request,
        ``besides`` these tables."""
        self._kv.check_integrity()
        left = sorted({*self._kv.tables, *self._ahead, *self._starved}.difference(besides))
        if left:
            raise LedgerError(f"no request is under way, but there are block tables, or requests wait for some: {left}")

    def _starve(self, request: DriverRequest, tokens: int) -> None:
        request.note(RequestHappening.EXHAUSTED)
        self._starved[request.request_id] = request, tokens

    def _waits(self, request: DriverRequest) -> bool:
        """Whether it is starved still: it may have left its turn since."""
        return request.request_id in self._starved and request.state is DriverRequestState.STARVED

    def _extend(self, request: DriverRequest, tokens: int) -> tuple[int, ...] | None:
        """More blocks; whoever waits for a first turn gives back what was found for it before there are none."""
        while True:
            try:
                return self._kv.extend(request.table_key, tokens)
            except OutOfSlabsError:
                if not self._ahead:
                    return None
                self._give_back(self._ahead.popitem()[1])

    def _give_back(self, request: DriverRequest) -> None:
        self._kv.free(request.table_key)
        request.kv_tokens = 0

    def _grant(self, request: DriverRequest, tokens: int) -> bool:
        """Give a running member more blocks; False when there are none."""
        new = self._extend(request, tokens)
        if new is None:
            return False
        incarnation = self._instances.running(request)
        if new and incarnation is not None:
            self._instances.tell(incarnation, m.GrantBlocks(request.request_id, new))
        return True

    def feed_starved(self) -> None:
        """Blocks came free: the earliest arrived go first."""
        for request, tokens in sorted(self._starved.values(), key=lambda one: one[0].submit.request.arrival_s):
            if not self._waits(request):
                del self._starved[request.request_id]
            elif self._grant(request, tokens):
                self._feed(request)
            else:
                return

    def _feed(self, request: DriverRequest) -> None:
        request.note(RequestHappening.GRANTED)
        del self._starved[request.request_id]
