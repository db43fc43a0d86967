"""The ``Frontend`` of a pool: tokenizes, keeps connections to nodes, and has clients wait for their output."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from aegaeon.core.generation import (
    ChatPrompt,
    EngineError,
    Generation,
    GenerationRequest,
    Health,
    ModelCard,
    ModelUnavailableError,
    UnknownModelError,
)
from aegaeon.core.request import Request
from aegaeon.core.sampling import SamplingParams
from aegaeon.runtime.frontend.core.frontend_core import FrontendCore, NodeSend
from aegaeon.runtime.frontend.core.pool_health import pool_health
from aegaeon.runtime.frontend.gateway import Endpoint, RemoteConnection
from aegaeon.runtime.frontend.generation_stream import GenerationStream
from aegaeon.runtime.frontend.node_connection import NodeConnection
from aegaeon.runtime.frontend.node_peer import NodePeer
from aegaeon.runtime.frontend.prompt_encoder import EncodedPrompt, PromptEncoder
from aegaeon.runtime.frontend.request_check import fit, prompt_too_long
from aegaeon.runtime.frontend.served_model import ServedModel
from aegaeon.runtime.frontend.text import PromptTooLongError, StopStrings
from aegaeon.runtime.wire import messages as m
from aegaeon.runtime.wire.clock import Clock
from aegaeon.scheduler.router import Router

# How often a tokenizer that cannot be loaded is tried again.
TEXT_RETRY_S = 10.0
# How long requests wait for a driver to come back where there is no other: longer than a whole pool takes to start.
_HOMELESS_S = 600.0


def no_router(nodes: int) -> None:
    """Requests go where ``choose_node`` says."""


class PoolFrontend:
    """Implements ``core.generation.Frontend`` over one or more nodes; lives on one asyncio loop.

    ``make_router(nodes)`` gives the policy's router for so many nodes, where it has one. Requests wait for a node for
    at most ``homeless_s`` where there is none.
    """

    def __init__(
        self,
        models: Mapping[str, ServedModel],
        clock: Clock,
        make_router: Callable[[int], Router | None] = no_router,
        homeless_s: float = _HOMELESS_S,
    ) -> None:
        self.served = dict(models)
        self._without_text: dict[str, ModelCard] = {}
        self._clock = clock
        self._core = FrontendCore(make_router)
        self._peers: dict[str, NodePeer] = {}
        self._encoder = PromptEncoder()
        self._homeless_s = homeless_s
        self._deserted: asyncio.TimerHandle | None = None  # runs while there is no node any more

    def offer(self, model: ServedModel | ModelCard) -> None:
        """Serve one more model; a card: it is one of ours, but cannot be used before it is offered again, whole."""
        if isinstance(model, ServedModel):
            self._without_text.pop(model.spec.name, None)
            self.served[model.spec.name] = model
        else:
            self._without_text[model.name] = model

    # --- nodes ------------------------------------------------------------------------------------------------------

    def connect(self, node_id: str, address: str) -> None:
        """Take this node's driver into the pool; its descriptor server is at ``address``."""
        self.take_in(NodeConnection(node_id, address, self.receive, self.lose))

    async def connect_remote(self, node_id: str, endpoint: Endpoint) -> None:
        """Take another node's driver into the pool. Raises ``OSError`` when its gateway does not answer."""
        self.take_in(await RemoteConnection.open(node_id, endpoint, self._clock, self.receive, self.lose))

    def connected(self, node_id: str) -> bool:
        """Whether a node is part of the pool."""
        return node_id in self._peers

    def take_in(self, node: NodePeer) -> None:
        """A node is connected."""
        self._peers[node.node_id] = node
        if self._deserted is not None:
            self._deserted.cancel()
            self._deserted = None
        self._send(self._core.take_in(node.node_id, node.frontend_id, self._clock.now_s()))

    def lose(self, node: NodePeer) -> None:
        """The connection to a node has ended."""
        node.close()
        del self._peers[node.node_id]
        self._send(self._core.lose(node.node_id, self._clock.now_s()))

    def receive(self, node: NodePeer, message: m.ToFrontend) -> None:
        """A node, or one of its instances, has said something."""
        if isinstance(message, m.Interrupted):  # what is answered rests on all that the instances have said
            node.drain_instance(message.instance_id)
        elif isinstance(message, m.InstanceGone):
            node.drop_instance(message.instance_key)
        self._send(self._core.receive(node.node_id, message))

    def _send(self, sends: Sequence[NodeSend]) -> None:
        for send in sends:
            self._peers[send.node_id].send(send.message)
        if self._core.deserted and self._deserted is None:
            self._deserted = asyncio.get_running_loop().call_later(self._homeless_s, self._give_up)

    def _give_up(self) -> None:
        self._send(self._core.give_up())

    def close(self) -> None:
        """Let go of all nodes; requests under way fail."""
        if self._deserted is not None:
            self._deserted.cancel()
        self._core.close(EngineError("the service is shutting down"))
        for node in self._peers.values():
            node.close()
        self._encoder.close()

    # --- Frontend ---------------------------------------------------------------------------------------------------

    def models(self) -> Sequence[ModelCard]:
        whole = [replace(model.card, failure=self._failure(name)) for name, model in self.served.items()]
        return [*whole, *self._without_text.values()]

    def _failure(self, model: str) -> str | None:
        error = self._core.failed_models.error(model, self._clock.now_s())
        return None if error is None else str(error)

    def health(self) -> Health:
        not_served = {model: str(self._failure(model)) for model in self._core.failed_models}
        not_served |= {card.name: str(card.failure) for card in self._without_text.values()}
        return pool_health(self._core.nodes, not_served, self._clock.now_s())

    def node_states(self) -> Sequence[tuple[str, m.NodeState]]:
        """The last report of each node, with its id."""
        return [(node.node_id, node.state) for node in self._core.nodes if node.state is not None]

    @property
    def request_ids(self) -> tuple[str, ...]:
        """The requests under way, as drivers know them."""
        return self._core.request_ids

    async def generate(self, request: GenerationRequest, first: Generation | None = None) -> Generation:
        model = self._usable(request.model)
        leader = first if isinstance(first, GenerationStream) else None
        prompt = await self._encode(model, request) if leader is None else leader.prompt
        sampling = fit(model, prompt.token_ids, request)
        stream = self._open(request, model, prompt, sampling, None if leader is None else leader.request_id)
        try:
            await stream.accepted
        except asyncio.CancelledError:
            await stream.cancel()
            raise
        return stream

    def _usable(self, name: str) -> ServedModel:
        """The model of that name. Raises ``UnknownModelError``, or ``ModelUnavailableError`` where it has failed."""
        if name in self._without_text:
            raise ModelUnavailableError(str(self._without_text[name].failure), TEXT_RETRY_S)
        if name not in self.served:
            names = ", ".join(sorted(self.served)[:8])
            raise UnknownModelError(f"The model '{name}' does not exist here. Models: {names}")
        error = self._core.failed_models.error(name, self._clock.now_s())
        if error is not None:
            raise error
        return self.served[name]

    async def _encode(self, model: ServedModel, request: GenerationRequest) -> EncodedPrompt:
        try:
            return await self._encoder.encode(model, request.prompt, request.cache_salt)
        except PromptTooLongError as error:
            raise prompt_too_long(model, f"at least {error.tokens}", request.prompt) from None

    def _open(
        self,
        request: GenerationRequest,
        model: ServedModel,
        prompt: EncodedPrompt,
        sampling: SamplingParams,
        after: str | None,
    ) -> GenerationStream:
        prompt_ids = prompt.token_ids
        arrival_s = self._clock.now_s()
        stream = GenerationStream(
            request.request_id,
            request.model,
            prompt,
            arrival_s,
            partial(model.text.stream, () if isinstance(request.prompt, ChatPrompt) else prompt_ids),
            StopStrings(sampling.stop),
            self._stop,
        )
        slo = request.slo or model.spec.slo
        width = 1 if sampling.beams is None else sampling.beams.width
        limit = sampling.max_new_tokens
        seen = Request(request.request_id, request.model, arrival_s, len(prompt_ids), limit, slo, width=width)
        submit = m.Submit(seen, "", prompt_ids, sampling, prompt.names, after=after)
        self._send(self._core.open(stream, submit, model.eos_ids, arrival_s))
        return stream

    def _stop(self, request_id: str) -> None:
        self._send(self._core.stop(request_id))
