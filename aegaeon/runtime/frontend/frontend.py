"""The ``Frontend`` of a pool: tokenizes, routes requests to nodes, and turns token ids into text."""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, assert_never

from aegaeon.core.command import RejectReason
from aegaeon.core.generation import (
    ChatPrompt,
    ContextLengthError,
    EngineError,
    FieldError,
    FinishReason,
    Generation,
    GenerationError,
    GenerationRequest,
    Health,
    ModelCard,
    ModelUnavailableError,
    OverloadedError,
    PoolUnavailableError,
    Prompt,
    PromptError,
    UnknownModelError,
)
from aegaeon.core.model import ModelSpec
from aegaeon.core.request import Request
from aegaeon.core.sampling import SamplingParams
from aegaeon.engine.architecture.prepare import PreparedModel
from aegaeon.engine.sampling.stop import finish_reason
from aegaeon.runtime.frontend.gateway import Endpoint, RemoteConnection
from aegaeon.runtime.frontend.generation_stream import GenerationStream
from aegaeon.runtime.frontend.node_connection import NodeConnection
from aegaeon.runtime.frontend.prompt_encoder import PromptEncoder
from aegaeon.runtime.frontend.text import ModelText, PromptTooLongError, StopStrings
from aegaeon.runtime.wire import messages as m
from aegaeon.runtime.wire.clock import Clock
from aegaeon.scheduler.router import Router
from aegaeon.scheduler.routing import route

logger = logging.getLogger(__name__)

# How often a tokenizer that cannot be loaded is tried again.
TEXT_RETRY_S = 10.0
_DEFAULT_RETRY_S = 5.0
# How long requests wait for a driver to come back where there is no other: longer than a whole pool takes to start.
_HOMELESS_S = 600.0
# A request that its driver was busy with as often when it died, and that got no token in between, may be the cause.
_FRUITLESS_LOSSES = 3


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model as the frontend needs it. ``sampling_defaults``: by field of ``SamplingParams``."""

    spec: ModelSpec
    card: ModelCard
    text: ModelText
    vocab_size: int
    eos_ids: tuple[int, ...] = ()
    sampling_defaults: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, model: PreparedModel) -> ServedModel:
        """Load the tokenizer. Raises ``TokenizerError``."""
        text = ModelText(model.config.path, chat_template=model.config.chat_template)
        card = model_card(model, has_chat_template=text.has_chat_template)
        facts = model.with_tokenizer(text.eos_token_id, ()).facts
        defaults = facts.sampling_defaults if model.config.generation_config == "auto" else {}
        return cls(model.spec, card, text, facts.vocab_size, facts.eos_token_ids, defaults)

    def finish_reason(self, sampling: SamplingParams, token_ids: Sequence[int]) -> FinishReason | None:
        """Why an output of these tokens is over, by its tokens alone; None where it goes on."""
        return finish_reason(sampling, self.eos_ids, token_ids)


def model_card(model: PreparedModel, *, has_chat_template: bool = False, failure: str | None = None) -> ModelCard:
    """What clients see of it; without its tokenizer: ``failure``, why it cannot be had."""
    return ModelCard(
        model.spec.name,
        model.facts.architecture,
        model.spec.max_context_tokens,
        model.facts.parameters,
        int(time.time()),
        has_chat_template,
        failure,
    )


@dataclass(frozen=True, slots=True)
class _UnderWay:
    """A request that is not over: where it is, its client's end, and what was submitted.

    ``accepted``, ``begun``: what its driver has said of this try.
    """

    node: NodePeer | None  # None: its node was lost, and there is no other
    stream: GenerationStream
    submit: m.Submit
    tries: int = 1
    fruitless_losses: int = 0  # of nodes that were busy with it, since its last token
    accepted: bool = False
    begun: bool = False

    def after_loss(self, suspected: bool) -> _UnderWay:
        """What is to be tried next: it goes on from the tokens that the client has, and its deadlines stay.

        ``suspected``: the driver may have died of it.

        It has a new id: what there still is of the last try, wherever that is, concerns nobody.
        """
        had, had_then = self.stream.rewind(), self.submit.generated_ids
        first = self.submit.request
        tries = self.tries + 1
        self.stream.request_id = f"{self.stream.first_id}~{tries}"
        moved = replace(
            first,
            request_id=self.stream.request_id,
            arrival_s=first.arrival_s + (len(had) - len(had_then)) * first.slo.tpot_s,
        )
        losses = (self.fruitless_losses if had == had_then else 0) + suspected
        return _UnderWay(None, self.stream, replace(self.submit, request=moved, generated_ids=had), tries, losses)


class NodePeer(Protocol):
    """A node of the pool, wherever it is."""

    node_id: str
    frontend_id: str
    state: m.NodeState | None

    def send(self, message: m.FromFrontend) -> None:
        """To the node's driver."""
        ...

    def drain_instance(self, instance_key: str) -> None:
        """Take what an instance that died had sent, and all that the node's others have sent so far."""
        ...

    def drop_instance(self, instance_key: str) -> None:
        """It will send no more: let go of what led to it."""
        ...

    def close(self) -> None: ...


def no_router(nodes: int) -> None:
    """Requests go where ``choose_node`` says."""


class PoolFrontend:
    """Implements ``core.generation.Frontend`` over one or more nodes; lives on one asyncio loop.

    ``make_router(nodes)`` gives the policy's router for so many nodes, where it has one. There is a fresh one whenever
    a node comes or is lost.

    A node that is lost (its driver died) fails nobody: its requests go to another node, or wait until one comes back,
    at most ``homeless_s``; so do new ones where there is none. They go on after the tokens that they have, and since
    sampling depends on seed and position alone, with the tokens that they would have had.
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
        self._make_router = make_router
        self._router: Router | None = None
        self._nodes: list[NodePeer] = []
        self._streams: dict[str, _UnderWay] = {}
        self._failures: dict[str, m.ModelState] = {}
        self._away_since_s: dict[str, float] = {}  # nodes that were lost and have not come back
        self._encoder = PromptEncoder()
        self._homeless_s = homeless_s
        self._deserted: asyncio.TimerHandle | None = None  # runs while there is no node any more
        self._given_up = False

    def offer(self, model: ServedModel | ModelCard) -> None:
        """Serve one more model; a card: it is one of ours, but cannot be used before it is offered again, whole."""
        if isinstance(model, ServedModel):
            self._without_text.pop(model.spec.name, None)
            self.served[model.spec.name] = model
        else:
            self._without_text[model.name] = model

    def connect(self, node_id: str, address: str) -> None:
        """Take this node's driver into the pool; its descriptor server is at ``address``."""
        self._take_in(NodeConnection(node_id, address, self._receive, self._lose))

    async def connect_remote(self, node_id: str, endpoint: Endpoint) -> None:
        """Take another node's driver into the pool. Raises ``OSError`` when its gateway does not answer."""
        self._take_in(await RemoteConnection.open(node_id, endpoint, self._clock, self._receive, self._lose))

    def connected(self, node_id: str) -> bool:
        """Whether a node is part of the pool."""
        return any(node.node_id == node_id for node in self._nodes)

    def _take_in(self, node: NodePeer) -> None:
        self._nodes.append(node)
        self._router = self._make_router(len(self._nodes))
        self._away_since_s.pop(node.node_id, None)
        if self._deserted is not None:
            self._deserted.cancel()
            self._deserted = None
        self._given_up = False
        self._house()

    def _lose(self, node: NodePeer) -> None:
        """The connection to a node has ended: what it was working on goes elsewhere, or waits."""
        node.close()
        self._nodes.remove(node)
        self._away_since_s[node.node_id] = self._clock.now_s()
        self._router = self._make_router(len(self._nodes)) if self._nodes else None
        there = {request_id: one for request_id, one in self._streams.items() if one.node is node}
        # What only waited has nothing to do with the end. Requests are taken in the order in which they were sent.
        being_taken = next((request_id for request_id, one in there.items() if not one.accepted), None)
        for request_id, under_way in there.items():
            if not self._end_if_whole(under_way):
                del self._streams[request_id]
                suspected = under_way.begun or request_id == being_taken
                self._uproot(under_way.after_loss(suspected), node.node_id)
        self._failures.clear()  # a new driver tries what the old one had given up; other nodes refuse what they must
        if self._nodes:
            self._house()
        else:
            self._await_node()

    def _uproot(self, next_try: _UnderWay, node_id: str) -> None:
        self._streams[next_try.stream.request_id] = next_try
        if next_try.fruitless_losses >= _FRUITLESS_LOSSES:
            reason = f"the driver of node {node_id} died {_FRUITLESS_LOSSES} times before the request's next token"
            self._fail(next_try.stream.request_id, EngineError(f"{reason}; the request may be the cause"))

    def _house(self) -> None:
        """Submit what has no node."""
        for under_way in tuple(self._streams.values()):
            if under_way.node is None:
                self._submit(under_way)

    def _submit(self, under_way: _UnderWay) -> None:
        """To the node that suits it, where there is one."""
        stream = under_way.stream
        node = self._route(stream.model) if self._nodes else None
        self._streams[stream.request_id] = replace(under_way, node=node)
        if node is not None:
            node.send(replace(under_way.submit, frontend_id=node.frontend_id))
        else:
            self._await_node()

    def _await_node(self) -> None:
        """Requests wait for a node from now on, but not for ever."""
        if self._deserted is None:
            self._deserted = asyncio.get_running_loop().call_later(self._homeless_s, self._give_up)

    def _give_up(self) -> None:
        """No node has come back."""
        self._given_up = True
        for request_id, under_way in tuple(self._streams.items()):
            if under_way.node is None:
                self._fail(request_id, _no_node())

    def close(self) -> None:
        """Let go of all nodes; requests under way fail."""
        if self._deserted is not None:
            self._deserted.cancel()
        for under_way in tuple(self._streams.values()):
            under_way.stream.fail(EngineError("the service is shutting down"))
        for node in self._nodes:
            node.close()
        self._encoder.close()

    # --- Frontend ---------------------------------------------------------------------------------------------------

    def models(self) -> Sequence[ModelCard]:
        whole = [replace(model.card, failure=self._failure(name)) for name, model in self.served.items()]
        return [*whole, *self._without_text.values()]

    def _failure(self, model: str) -> str | None:
        state = self._failures.get(model)
        return None if state is None else str(_unavailable(state, self._clock.now_s()))

    def health(self) -> Health:
        instances = [instance for node in self._nodes if node.state for instance in node.state.instances]
        problems = tuple(self._problems())
        able = [instance for instance in instances if instance.alive and not instance.trouble]
        prefills = any(instance.role.prefills for instance in able)
        decodes = any(instance.role.decodes for instance in able)
        if prefills and decodes:
            return Health(ready=True, live=True, problems=problems)
        if not self._nodes:
            return Health(ready=False, live=True, detail="no driver is there; requests wait for one")
        missing = "prefill" if not prefills else "decode"
        detail = f"no instance that can {missing} is up"
        return Health(ready=False, live=True, detail="; ".join((detail, *problems)), problems=problems)

    def _problems(self) -> Iterator[str]:
        """What is missing of the pool as it should be, and why; one line each."""
        now_s = self._clock.now_s()
        for node_id, since_s in self._away_since_s.items():
            yield f"node {node_id} has no driver (since {now_s - since_s:.0f} s)"
        for node in self._nodes:
            if node.state is None:
                yield f"node {node.node_id} has not reported yet"
                continue
            age_s = max(0.0, now_s - node.state.now_s)
            for instance in node.state.instances:
                if instance.trouble or not instance.alive:
                    for_s = instance.for_s + age_s
                    yield f"instance {instance.instance_id} {instance.trouble or 'is starting'} (since {for_s:.0f} s)"
        for model in self._failures:
            yield f"model {model} is not served: {self._failure(model)}"
        for card in self._without_text.values():
            yield f"model {card.name} is not served: {card.failure}"

    def node_states(self) -> Sequence[tuple[str, m.NodeState]]:
        """The last report of each node, with its id."""
        return [(node.node_id, node.state) for node in self._nodes if node.state is not None]

    async def generate(self, request: GenerationRequest) -> Generation:
        model = self.served.get(request.model)
        if request.model in self._without_text:
            raise ModelUnavailableError(str(self._without_text[request.model].failure), TEXT_RETRY_S)
        if model is None:
            names = ", ".join(sorted(self.served)[:8])
            raise UnknownModelError(f"The model '{request.model}' does not exist here. Models: {names}")
        if request.model in self._failures:
            raise _unavailable(self._failures[request.model], self._clock.now_s())
        prompt_ids = await self._encode(model, request.prompt)
        sampling = _fit(model, prompt_ids, request)
        stream = self._open(request, model, prompt_ids, sampling)
        try:
            await stream.accepted
        except asyncio.CancelledError:
            await stream.cancel()
            raise
        return stream

    async def _encode(self, model: ServedModel, prompt: Prompt) -> tuple[int, ...]:
        try:
            return await self._encoder.encode(model.text, prompt, model.spec.max_context_tokens)
        except PromptTooLongError as error:
            raise _prompt_too_long(model, f"at least {error.tokens}", prompt) from None

    def _open(
        self, request: GenerationRequest, model: ServedModel, prompt_ids: tuple[int, ...], sampling: SamplingParams
    ) -> GenerationStream:
        if self._given_up:
            raise _no_node()
        arrival_s = self._clock.now_s()
        stream = GenerationStream(
            request.request_id,
            request.model,
            len(prompt_ids),
            arrival_s,
            model.text.stream(() if isinstance(request.prompt, ChatPrompt) else prompt_ids),
            StopStrings(sampling.stop),
            self._stop,
        )
        slo = request.slo or model.spec.slo
        seen = Request(request.request_id, request.model, arrival_s, len(prompt_ids), sampling.max_new_tokens, slo)
        self._submit(_UnderWay(None, stream, m.Submit(seen, "", prompt_ids, sampling)))
        return stream

    def _route(self, model: str) -> NodePeer:
        # What we sent ourselves is known at once, reports are a fraction of a second old.
        sent = Counter((own.node.node_id, own.stream.model) for own in self._streams.values() if own.node is not None)
        loads = [_load(node.state) | _sent_to(node.node_id, sent) for node in self._nodes]
        under_way = [load.total() for load in loads]
        of_model = [load[model] for load in loads]
        warm = partial(self._is_warm, model)
        return self._nodes[route(self._router, model, under_way, of_model, warm, self._clock.now_s())]

    def _is_warm(self, model: str, place: int) -> bool:
        return _is_warm(self._nodes[place].state, model)

    def _stop(self, request_id: str) -> None:
        under_way = self._streams.pop(request_id, None)
        if under_way is not None and under_way.node is not None:
            under_way.node.send(m.Cancel(request_id))

    # --- messages ---------------------------------------------------------------------------------------------------

    def _receive(self, node: NodePeer, message: m.ToFrontend) -> None:
        match message:
            case m.Tokens():
                self._take_tokens(message)
            case m.Spans():
                self._with(message.request_id, lambda s: s.spans.extend(message.spans))
            case m.Finished():
                self._with(message.request_id, lambda s: s.finish(message.reason, message.generated_tokens))
                self._drop_if_done(message.request_id)
            case m.Accepted():
                self._with(message.request_id, lambda s: s.accept())
                self._note(message.request_id)
            case m.Begun():
                self._note(message.request_id, begun=True)
            case m.NodeState():
                node.state = message
            case _:
                self._receive_trouble(node, message)

    def _take_tokens(self, message: m.Tokens) -> None:
        for request_id, index, token_id in message.items:
            self._with(request_id, GenerationStream.take_token, index, token_id, message.time_s)
            self._drop_if_done(request_id)

    def _drop_if_done(self, request_id: str) -> None:
        under_way = self._streams.get(request_id)
        if under_way is not None and under_way.stream.done:
            del self._streams[request_id]

    def _receive_trouble(
        self, node: NodePeer, message: m.Rejected | m.Failed | m.Interrupted | m.ModelState | m.InstanceGone
    ) -> None:
        match message:
            case m.Rejected():
                self._fail(message.request_id, _rejection(message))
            case m.Failed():
                self._fail(message.request_id, EngineError(message.reason, message.cause))
            case m.Interrupted():
                self._resume(node, message)
            case m.ModelState():
                if message.failure is None:
                    self._failures.pop(message.model, None)
                else:
                    self._failures[message.model] = message
            case m.InstanceGone():
                node.drop_instance(message.instance_key)
            case _:
                assert_never(message)

    def _with(self, request_id: str, act: Callable[..., None], *args: object) -> None:
        """Act on a stream; one that is over or was given up is no longer known, and late messages for it are normal.

        What goes wrong with one (its model's tokenizer is anybody's) ends that one."""
        under_way = self._streams.get(request_id)
        if under_way is None:
            return
        try:
            act(under_way.stream, *args)
        except Exception as error:
            logger.exception("request %s of model %s fails at its frontend", request_id, under_way.stream.model)
            reason = f"the output cannot be turned into text: {type(error).__name__}: {error}"
            under_way.stream.fail(EngineError(reason))
            self._stop(request_id)

    def _note(self, request_id: str, begun: bool = False) -> None:
        """Its driver has taken it, and maybe begun it."""
        under_way = self._streams.get(request_id)
        if under_way is not None:
            self._streams[request_id] = replace(under_way, accepted=True, begun=begun or under_way.begun)

    def _fail(self, request_id: str, error: GenerationError) -> None:
        self._with(request_id, lambda stream: stream.fail(error))
        self._streams.pop(request_id, None)

    def _resume(self, node: NodePeer, message: m.Interrupted) -> None:
        node.drain_instance(message.instance_id)
        under_way = self._streams.get(message.request_id)
        if under_way is None or self._end_if_whole(under_way):
            node.send(m.Cancel(message.request_id))
        else:
            node.send(m.Resume(message.request_id, under_way.stream.rewind()))

    def _end_if_whole(self, under_way: _UnderWay) -> bool:
        """Whether all tokens are here, so that the request is over although nobody lives to say so."""
        stream, submit = under_way.stream, under_way.submit
        reason = self.served[stream.model].finish_reason(submit.sampling, stream.token_ids)
        if reason is not None:
            stream.finish(reason, len(stream.token_ids))
            self._drop_if_done(stream.request_id)
        return reason is not None


def _load(state: m.NodeState | None) -> Counter[str]:
    """Requests that a node reported, by model."""
    load: Counter[str] = Counter()
    for model, count in (*state.waiting, *state.running) if state is not None else ():
        load[model] += count
    return load


def _sent_to(node_id: str, sent: Mapping[tuple[str, str], int]) -> Counter[str]:
    return Counter({model: count for (node, model), count in sent.items() if node == node_id})


def _is_warm(state: m.NodeState | None, model: str) -> bool:
    if state is None:
        return False
    return model in state.weights_cached or any(model in instance.resident for instance in state.instances)


def _fit(model: ServedModel, prompt_ids: Sequence[int], request: GenerationRequest) -> SamplingParams:
    """Check the prompt, settle what the client left open, the output limit and the seed."""
    limit, sampling = model.spec.max_context_tokens, _with_defaults(model.sampling_defaults, request)
    room = limit - len(prompt_ids)
    if room < 1:
        raise _prompt_too_long(model, str(len(prompt_ids)), request.prompt)
    if room < sampling.max_new_tokens and not request.fit_context:
        raise ContextLengthError(
            f"{_context(model)} However, you requested {len(prompt_ids) + sampling.max_new_tokens} tokens "
            f"({len(prompt_ids)} in the {_param(request.prompt)}, {sampling.max_new_tokens} in the completion). "
            f"Please reduce the length of the {_param(request.prompt)} or completion.",
            "max_tokens",
        )
    _require_known_tokens(model, prompt_ids, request)
    seed = sampling.seed if sampling.seed is not None else secrets.randbits(63)
    new_tokens = min(sampling.max_new_tokens, room)
    return replace(
        sampling,
        seed=seed,
        max_new_tokens=new_tokens,
        min_new_tokens=min(sampling.min_new_tokens, new_tokens),
    )


def _context(model: ServedModel) -> str:
    """In the words that clients look for."""
    return f"This model's maximum context length is {model.spec.max_context_tokens} tokens."


def _prompt_too_long(model: ServedModel, tokens: str, prompt: Prompt) -> ContextLengthError:
    param = _param(prompt)
    message = f"{_context(model)} However, your {param} resulted in {tokens} tokens. "
    return ContextLengthError(f"{message}Please reduce the length of the {param}.", param)


def _param(prompt: Prompt) -> str:
    return "messages" if isinstance(prompt, ChatPrompt) else "prompt"


def _with_defaults(defaults: Mapping[str, float], request: GenerationRequest) -> SamplingParams:
    """What the client said, and the model's defaults where it said nothing."""
    given: dict[str, Any] = {name: value for name, value in defaults.items() if name in request.unset}
    if "max_new_tokens" in given:
        given["max_new_tokens"] = max(given["max_new_tokens"], request.sampling.min_new_tokens)
    return replace(request.sampling, **given)


def _no_node() -> PoolUnavailableError:
    return PoolUnavailableError("The pool has no node that can serve now; it is being restarted.", _DEFAULT_RETRY_S)


def _require_known_tokens(model: ServedModel, prompt_ids: Sequence[int], request: GenerationRequest) -> None:
    """Ids become indices further on: none may be outside the vocabulary, and not all may be forbidden."""
    vocabulary, sampling = range(model.vocab_size), request.sampling
    for error, ids, name in (
        (PromptError, prompt_ids, _param(request.prompt)),
        (FieldError, sampling.stop_token_ids, "stop_token_ids"),
    ):
        bad = next((token for token in ids if token not in vocabulary), None)
        if bad is not None:
            raise error(f"{name}: token id {bad} is not in the model's vocabulary of {model.vocab_size}", name)
    if sampling.min_new_tokens and {*sampling.stop_token_ids, *model.eos_ids}.issuperset(vocabulary):
        message = "stop_token_ids: every token of the vocabulary is one, which leaves none for min_tokens"
        raise FieldError(message, "stop_token_ids")


def _unavailable(state: m.ModelState, now_s: float) -> ModelUnavailableError:
    """What a client hears of a model that cannot be used now, and when to come again."""
    assert state.failure is not None, "it has failed"
    left_s = None if state.retry_s is None else max(0.0, state.retry_s - now_s)
    if state.awaits_files:
        return ModelUnavailableError(f"{state.failure}; it is tried again when its files change", left_s)
    if left_s is None:
        return ModelUnavailableError(state.failure)
    return ModelUnavailableError(f"{state.failure}; it is tried again in {math.ceil(left_s)} s", left_s)


def _rejection(message: m.Rejected) -> GenerationError:
    match message.reason:
        case RejectReason.OVERLOADED:
            return OverloadedError(
                message.detail or "the pool is overloaded", message.retry_after_s or _DEFAULT_RETRY_S
            )
        case RejectReason.TOO_LARGE:
            return ContextLengthError(message.detail, "prompt")
        case RejectReason.MODEL_FAILED:
            return ModelUnavailableError(message.detail, message.retry_after_s)
        case RejectReason.UNKNOWN_MODEL:
            return UnknownModelError(message.detail)
        case _:
            assert_never(message.reason)
