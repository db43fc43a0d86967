"""What a node's slab cache keeps of requests that have ended: found again by those that begin alike.

The tree and the policies are the runtime's (``aegaeon.memory``); here names come with the workload. A name stands for
as many tokens as the workload says, one or several KV blocks that come and go together, so what two requests have in
common beyond whole names is computed again. KV counts as found from the moment at which its request ends.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from itertools import takewhile

from aegaeon.core.kv_shape import KvShape
from aegaeon.memory.eviction import EVICTIONS
from aegaeon.memory.prefix_tree import PrefixNode, PrefixTree
from aegaeon.memory.shape_slabs import SlabShare
from aegaeon.memory.slab_ledger import SlabLedger
from aegaeon.scheduler.prompt_cost import SavedS
from aegaeon.workload import NamedBlocks
from sim.world.kv_disk import SimKvDisk
from sim.world.request_state import RequestState

_ID_BYTES = 8


class _Names:
    """Of the whole blocks of a context but for its last token, which is fed."""

    def __init__(self, root: bytes, content: NamedBlocks, context_tokens: int) -> None:
        self._root = root
        self._content = content
        self._count = min((context_tokens - 1) // content.block_tokens, len(content))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> bytes:
        return self._root + self._content[index].to_bytes(_ID_BYTES, "big")


class KeptKv:
    """Shares a ledger of slabs with the requests under way; those come first.

    ``contents``: by request id. In the tree a node's ``block`` is its place in the sequence. Who waits for a first turn
    holds what was found for it, until somebody under way would starve for that.
    """

    def __init__(
        self, slabs: SlabLedger, contents: Mapping[str, NamedBlocks], policy: str, worth: SavedS, disk: SimKvDisk
    ) -> None:
        self.policy = policy
        self._slabs = slabs
        self._contents = contents
        self._worth = worth
        self._disk = disk
        self._tree = PrefixTree(EVICTIONS[policy]())
        self._shares: dict[PrefixNode, list[SlabShare]] = {}
        self._roots: dict[tuple[str, str], bytes] = {}  # by model and scope
        self._ahead: dict[str, RequestState] = {}  # those that wait for a first turn and hold something
        self.prompt_tokens = self.found_tokens = 0  # of requests that have been in a turn
        self.evicted_bytes = self.disk_tokens = 0

    @property
    def kept_bytes(self) -> int:
        """Bytes of blocks that nobody holds."""
        return self._tree.kept_bytes

    @property
    def blocks(self) -> int:
        """KV blocks that are the tree's."""
        return sum(count for shares in self._shares.values() for _, count in shares)

    # --- requests

    def arrive(self, request: RequestState, now_s: float) -> None:
        """Hold what there is of its tokens."""
        request.content = self._contents.get(request.request_id)
        self._find(request, now_s)
        if request.shared is not None:
            self._ahead[request.request_id] = request

    def seat(self, request: RequestState, now_s: float) -> None:
        """It has come into a turn to be prefilled: there may be more by now, and it keeps what it holds."""
        waited = self._ahead.pop(request.request_id, None) is not None
        if waited or not request.blocks:
            self._find(request, now_s)
        if not request.seated:
            request.seated = True
            self.prompt_tokens += request.request.prompt_tokens
            self.found_tokens += request.kv_tokens

    def leave(self, request: RequestState, safe_tokens: int) -> None:
        """It is over, or loses its KV: whole blocks with a name are kept, the rest is free."""
        self._ahead.pop(request.request_id, None)
        content = request.content
        if content is None:
            self._slabs.give_back(sorted(request.let_go(request.blocks)))
            return
        blocks = content.block_tokens // request.model.block_tokens  # of a name
        first, end = request.shared_blocks // blocks, min(safe_tokens // content.block_tokens, len(content))
        tail = request.blocks - request.shared_blocks - max(0, end - first) * blocks
        self._slabs.give_back(sorted(request.let_go(tail)))
        shares = [request.let_go(blocks) for _ in range(first, end)][::-1]
        before = last = request.shared
        for index, share in enumerate(shares, first):
            last = self._keep(request, content, index, share, last)
        if last is not None:
            self._tree.hold(last)
            self._tree.let_go(last)
        if before is not None:
            self._tree.let_go(before)
        request.share(None, 0)

    def _keep(
        self,
        request: RequestState,
        content: NamedBlocks,
        index: int,
        share: list[SlabShare],
        before: PrefixNode | None,
    ) -> PrefixNode:
        """A request's block becomes the tree's, unless that has such a one already."""
        root = self._root(request, content)
        name = root + content[index].to_bytes(_ID_BYTES, "big")
        node = self._tree.get(name)
        if node is not None:
            self._slabs.give_back(sorted(share))
            return node
        start, shape = index * content.block_tokens, request.model.spec.kv_shape
        size_bytes = content.block_tokens * shape.token_bytes
        worth = self._worth(request.request.model, start, start + content.block_tokens) / size_bytes
        node = self._tree.add(index, size_bytes, name, root if before is None else before, worth)
        self._shares[node] = share
        self._disk.keep(name, size_bytes)
        return node

    def _find(self, request: RequestState, now_s: float) -> None:
        """Hold the longest run of leading blocks that is kept, but for the last token, which is fed."""
        content = request.content
        if content is None:
            return
        names = _Names(self._root(request, content), content, request.context)
        found = self._kept(names)
        before, last = request.shared, self._tree.get(names[found - 1]) if found else None
        if last is not before:
            if last is not None:
                self._tree.hold(last)
            if before is not None:
                self._tree.let_go(before)
            request.share(last, found * content.block_tokens // request.model.block_tokens)
        request.kv_tokens = request.saved_tokens = found * content.block_tokens
        request.saved_s = now_s

    def _kept(self, names: _Names) -> int:
        """How many of the first of these are in host memory: a prefix is there as a whole."""
        return bisect_left(range(len(names)), True, key=lambda index: self._tree.get(names[index]) is None)

    # --- the disk

    def fetch(self, request: RequestState, now_s: float) -> float | None:
        """When as much of a request's KV is in host memory as is worth waiting for; None where it need not wait."""
        content = self._contents.get(request.request_id)
        if content is None or not len(self._disk.index):
            return None
        names = _Names(self._root(request, content), content, request.context)
        first = self._kept(names)
        run = list(takewhile(self._disk.index.__contains__, (names[index] for index in range(first, len(names)))))
        if not run:
            return None
        start, tokens = first * content.block_tokens, len(run) * content.block_tokens
        saved_s = self._worth(request.request.model, start, start + tokens)
        return self._disk.read(run, tokens * request.model.spec.kv_shape.token_bytes, saved_s, now_s)

    def restore(self, request: RequestState) -> None:
        """What was read for a request is kept, as far as kept KV leaves room for it."""
        content = self._contents[request.request_id]
        names = _Names(self._root(request, content), content, request.context)
        blocks = content.block_tokens // request.model.block_tokens  # of a name
        first = self._kept(names)
        last = self._tree.get(names[first - 1]) if first else None
        if last is not None:
            self._tree.hold(last)
        for index in range(first, len(names)):
            if names[index] not in self._disk.index or not self._give_way(request.model.spec.kv_shape, blocks):
                break
            before, share = last, self._slabs.take(request.model.spec.kv_shape, blocks)
            last = self._keep(request, content, index, share[::-1], before)
            self._tree.hold(last)
            if before is not None:
                self._tree.let_go(before)
            self.disk_tokens += content.block_tokens
        if last is not None:
            self._tree.let_go(last)

    def _give_way(self, shape: KvShape, blocks: int) -> bool:
        """Whether so many blocks can be had where only what nobody holds gives way."""
        while not self._slabs.can_allocate(shape, blocks):
            if not self._evict():
                return False
        return True

    def _root(self, request: RequestState, content: NamedBlocks) -> bytes:
        key = request.request.model, content.scope
        return self._roots.setdefault(key, len(self._roots).to_bytes(_ID_BYTES, "big"))

    # --- room

    def make_room(self, shape: KvShape, blocks: int) -> bool:
        """Whether so many blocks can be had, now that others gave way: what is kept, then what is held for later."""
        while not self._give_way(shape, blocks):
            if not self._ahead:
                return False
            self._give_back(self._ahead.popitem()[1])
        return True

    def clear(self) -> None:
        """Give up all that nobody holds."""
        while self._evict():
            pass

    def _evict(self) -> bool:
        node = self._tree.evict()
        if node is None:
            return False
        self.evicted_bytes += node.size_bytes
        self._slabs.give_back(sorted(self._shares.pop(node)))
        return True

    def _give_back(self, request: RequestState) -> None:
        assert request.shared is not None, "it waits and holds something"
        self._tree.let_go(request.shared)
        request.share(None, 0)
        request.kv_tokens = request.saved_tokens = 0

    def check_integrity(self) -> None:
        """Raise ``LedgerError`` unless the tree is in order."""
        self._tree.check_integrity()
