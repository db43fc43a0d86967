"""A frontend without I/O: messages of nodes and wishes of clients in, a list of what nodes are to be told out.

A node that is lost (its driver died) fails nobody: its requests go to another node, or wait until one comes back; so do
new ones where there is none. They go on after the tokens that they have, and since sampling depends on seed and
position alone, with the tokens that they would have had.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import assert_never

from aegaeon.core.generation import EngineError, GenerationError
from aegaeon.runtime.frontend.core.failed_models import FailedModels
from aegaeon.runtime.frontend.core.known_nodes import KnownNode, KnownNodes
from aegaeon.runtime.frontend.core.output_stream import OutputStream
from aegaeon.runtime.frontend.core.refusals import no_node, rejection
from aegaeon.runtime.frontend.core.under_way import UnderWay
from aegaeon.runtime.wire import messages as m
from aegaeon.scheduler.router import Router

logger = logging.getLogger(__name__)

# A request that its driver was busy with as often when it died, and that got no token in between, may be the cause.
_FRUITLESS_LOSSES = 3


@dataclass(frozen=True, slots=True)
class NodeSend:
    """Something to tell a node's driver."""

    node_id: str
    message: m.FromFrontend


class FrontendCore:
    """The requests under way, and the nodes. Each call returns what is to be sent, in this order.

    A stream may call ``stop`` while it is told something.
    """

    def __init__(self, make_router: Callable[[int], Router | None]) -> None:
        self.nodes = KnownNodes(make_router)
        self.failed_models = FailedModels()
        self._under_way: dict[str, UnderWay] = {}
        self._given_up = False
        self._sends: list[NodeSend] = []

    @property
    def request_ids(self) -> tuple[str, ...]:
        """The requests under way, as drivers know them."""
        return tuple(self._under_way)

    @property
    def deserted(self) -> bool:
        """Whether there is no node, and somebody misses one: that must not be for ever (``give_up``)."""
        return not self.nodes and bool(self.nodes.away_since_s or self._under_way)

    # --- nodes ------------------------------------------------------------------------------------------------------

    def take_in(self, node_id: str, frontend_id: str, now_s: float) -> list[NodeSend]:
        """There is a node, which knows us by ``frontend_id``: it gets what has none."""
        self.nodes.add(node_id, frontend_id)
        self._given_up = False
        self._house(now_s)
        return self._take_sends()

    def lose(self, node_id: str, now_s: float) -> list[NodeSend]:
        """A node's driver has ended: what it was working on goes elsewhere, or waits."""
        self.nodes.remove(node_id, now_s)
        there = {request_id: one for request_id, one in self._under_way.items() if one.node_id == node_id}
        # What only waited has nothing to do with the end. Requests are taken in the order in which they were sent.
        being_taken = next((request_id for request_id, one in there.items() if not one.accepted), None)
        for request_id, under_way in there.items():
            if not self._end_if_whole(under_way):
                del self._under_way[request_id]
                suspected = under_way.begun or request_id == being_taken
                self._uproot(under_way.after_loss(suspected), node_id)
        self.failed_models.clear()  # a new driver tries what the old one had given up; others refuse what they must
        self._house(now_s)
        return self._take_sends()

    def _uproot(self, next_try: UnderWay, node_id: str) -> None:
        self._under_way[next_try.stream.request_id] = next_try
        if next_try.fruitless_losses >= _FRUITLESS_LOSSES:
            reason = f"the driver of node {node_id} died {_FRUITLESS_LOSSES} times before the request's next token"
            self._fail(next_try.stream.request_id, EngineError(f"{reason}; the request may be the cause"))

    def _house(self, now_s: float) -> None:
        """Submit what has no node."""
        for under_way in tuple(self._under_way.values()):
            if under_way.node_id is None:
                self._submit(under_way, now_s)

    def _submit(self, under_way: UnderWay, now_s: float) -> None:
        """Submits a request to the node that suits it, where there is one."""
        stream = under_way.stream
        node = self._choose(under_way, now_s)
        self._under_way[stream.request_id] = replace(under_way, node_id=node.node_id if node is not None else None)
        if node is not None:
            self._send(node.node_id, replace(under_way.submit, frontend_id=node.frontend_id))

    def _choose(self, under_way: UnderWay, now_s: float) -> KnownNode | None:
        """The node of the one that it shares a prompt with, else the router's."""
        leader = self._under_way.get(under_way.submit.after or "")
        if leader is not None and leader.node_id is not None:
            return self.nodes[leader.node_id]
        sent = Counter((own.node_id, own.stream.model) for own in self._under_way.values() if own.node_id is not None)
        return self.nodes.choose(under_way.stream.model, sent, now_s)

    def give_up(self) -> list[NodeSend]:
        """No node has come back: what waits for one fails, and so does what comes before there is one."""
        self._given_up = True
        for request_id, under_way in tuple(self._under_way.items()):
            if under_way.node_id is None:
                self._fail(request_id, no_node())
        return self._take_sends()

    # --- clients ----------------------------------------------------------------------------------------------------

    def open(self, stream: OutputStream, submit: m.Submit, eos_ids: tuple[int, ...], now_s: float) -> list[NodeSend]:
        """A new request. Raises ``PoolUnavailableError`` where nodes have been waited for in vain."""
        if self._given_up:
            raise no_node()
        self._submit(UnderWay(stream, submit, eos_ids), now_s)
        return self._take_sends()

    def stop(self, request_id: str) -> list[NodeSend]:
        """A request's client has what it wanted, or has left."""
        self._cancel(request_id)
        return self._take_sends()

    def close(self, error: GenerationError) -> None:
        """All requests under way fail."""
        for request_id in self.request_ids:
            self._fail(request_id, error)

    # --- messages ---------------------------------------------------------------------------------------------------

    def receive(self, node_id: str, message: m.ToFrontend) -> list[NodeSend]:
        """Take a message of a node, after all that it rests on (``node_inbox.py``)."""
        match message:
            case m.Tokens():
                self._take_tokens(message)
            case m.Spans():
                self._with(message.request_id, lambda s: s.spans.extend(message.spans))
            case m.Finished():
                self._finish(message)
            case m.Accepted():
                self._with(message.request_id, lambda s: s.accept())
                self._note(message.request_id)
            case m.Begun():
                self._with(message.request_id, _note_cached, message.cached_tokens)
                self._note(message.request_id, begun=True)
            case _:
                self._receive_trouble(node_id, message)
        return self._take_sends()

    def _receive_trouble(
        self,
        node_id: str,
        message: m.Rejected | m.Failed | m.Interrupted | m.ModelState | m.InstanceGone | m.NodeState,
    ) -> None:
        match message:
            case m.Rejected():
                self._fail(message.request_id, rejection(message))
            case m.Failed():
                self._fail(message.request_id, EngineError(message.reason, message.cause))
            case m.Interrupted():
                self._resume(node_id, message.request_id)
            case m.ModelState():
                self.failed_models.note(message)
            case m.NodeState():
                self.nodes[node_id].state = message
            case m.InstanceGone():
                pass  # its ring was the connection's
            case _:
                assert_never(message)

    def _finish(self, message: m.Finished) -> None:
        self._with(message.request_id, _note_cached, message.cached_tokens)
        if message.outputs:
            self._with(message.request_id, lambda s: s.finish_search(message.outputs))
        else:
            self._with(message.request_id, lambda s: s.finish(message.reason, message.generated_tokens))

    def _take_tokens(self, message: m.Tokens) -> None:
        for request_id, index, token_id, *logprob in message.items:
            self._with(request_id, lambda s, *token: s.take_token(*token), index, token_id, message.time_s, *logprob)

    def _with(self, request_id: str, act: Callable[..., None], *args: object) -> None:
        """Act on a stream; one that is over or was given up is no longer known, and late messages for it are normal.

        What goes wrong with one (its model's tokenizer is anybody's) ends that one."""
        under_way = self._under_way.get(request_id)
        if under_way is None:
            return
        stream = under_way.stream
        try:
            act(stream, *args)
        except Exception as error:
            logger.exception("request %s of model %s fails at its frontend", request_id, stream.model)
            reason = f"the output cannot be turned into text: {type(error).__name__}: {error}"
            stream.fail(EngineError(reason))
            self._cancel(request_id)
        if stream.done:
            self._under_way.pop(request_id, None)

    def _note(self, request_id: str, begun: bool = False) -> None:
        """A request's driver has taken it, and maybe begun it."""
        under_way = self._under_way.get(request_id)
        if under_way is not None:
            self._under_way[request_id] = replace(under_way, accepted=True, begun=begun or under_way.begun)

    def _fail(self, request_id: str, error: GenerationError) -> None:
        self._with(request_id, lambda stream: stream.fail(error))
        self._under_way.pop(request_id, None)

    def _resume(self, node_id: str, request_id: str) -> None:
        under_way = self._under_way.get(request_id)
        if under_way is None or self._end_if_whole(under_way):
            self._send(node_id, m.Cancel(request_id))
        else:
            self._send(node_id, m.Resume(request_id, under_way.stream.rewind()))

    def _end_if_whole(self, under_way: UnderWay) -> bool:
        """Whether all tokens are here, so that the request is over although nobody lives to say so."""
        reason, stream = under_way.whole, under_way.stream
        if reason is None:
            return False
        self._with(stream.request_id, lambda s: s.finish(reason, len(s.token_ids)))
        return True

    # --- what is to be sent -----------------------------------------------------------------------------------------

    def _cancel(self, request_id: str) -> None:
        under_way = self._under_way.pop(request_id, None)
        if under_way is not None and under_way.node_id is not None:
            self._send(under_way.node_id, m.Cancel(request_id))

    def _send(self, node_id: str, message: m.FromFrontend) -> None:
        if node_id in self.nodes:  # else it has just been lost
            self._sends.append(NodeSend(node_id, message))

    def _take_sends(self) -> list[NodeSend]:
        sends, self._sends = self._sends, []
        return sends


def _note_cached(stream: OutputStream, tokens: int) -> None:
    stream.cached_tokens = tokens
