"""The HTTP server of a service: a process of its own, so that its death costs the pool nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pickle
import socket
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

from prometheus_client import CollectorRegistry

from aegaeon.cli.service.channel import BEAT_S, Beat, BeginServer, BlockingChannel, ModelsReady, NodeUp, Said
from aegaeon.core.config import PoolConfig
from aegaeon.core.generation import ModelCard
from aegaeon.core.service import InstanceStarted, Ready
from aegaeon.engine.prepared.prepared_model import PreparedModel
from aegaeon.runtime.cluster.driver_keeper import NodeAddress
from aegaeon.runtime.frontend.admin import pool_state
from aegaeon.runtime.frontend.frontend import TEXT_RETRY_S, PoolFrontend
from aegaeon.runtime.frontend.node_metrics import NodeCollector
from aegaeon.runtime.frontend.served_model import ServedModel, model_card
from aegaeon.runtime.frontend.text import TokenizerError
from aegaeon.runtime.wire.clock import MonotonicClock
from aegaeon.runtime.wire.fd_exchange import FdExchangeError
from aegaeon.scheduler.policies.registry import make_router
from aegaeon.scheduler.router import Router
from aegaeon.server.app import ServerOptions, create_app
from aegaeon.server.http.limits import ConnectionLimits, RequestLimits
from aegaeon.server.serve import serve

logger = logging.getLogger(__name__)

_READY_TIMEOUT_S = 120.0
_READY_POLL_S = 0.05
# How often a node that was lost is looked for: where its driver died, there is a new one at a new address soon; where
# only a connection was lost, the old one is still there.
_CONNECT_POLL_S = 0.2


def run(channel: BlockingChannel, begin: BeginServer, listening_fd: int) -> None:
    """Serve until the supervisor says ``Stop`` and what was under way has ended."""
    models = channel.receive()
    assert isinstance(models, ModelsReady), "the supervisor starts a server when there are models"
    asyncio.run(_serve(channel, begin, pickle.loads(models.models), socket.socket(fileno=listening_fd)))


async def _serve(
    channel: BlockingChannel, begin: BeginServer, models: Sequence[PreparedModel], sock: socket.socket
) -> None:
    config = begin.config
    frontend = PoolFrontend({}, MonotonicClock(), _routers(config, models))
    left = offer_all(frontend, models)
    app = create_app(frontend, _server_options(frontend, config))
    helpers = [
        asyncio.create_task(_beat(channel)),
        asyncio.create_task(offer_later(frontend, left)),
        asyncio.create_task(_report_ready(frontend, config, channel, begin.url)),
    ]
    serving = asyncio.create_task(
        serve(app, sock, on_started=lambda: None, grace_s=config.grace_s, limits=_connection_limits(config))
    )
    stop = asyncio.Event()
    following = asyncio.create_task(_follow(channel, frontend, stop))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        helpers.pop().cancel()
        serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving
    finally:
        for task in (*helpers, stopping, following):
            task.cancel()
        frontend.close()


def offer_all(frontend: PoolFrontend, models: Sequence[PreparedModel]) -> list[PreparedModel]:
    """Have models served, each if its tokenizer can be loaded (its folder may be away); those that are left."""
    left = []
    for model in models:
        offer = _offer(model)
        frontend.offer(offer)
        if isinstance(offer, ModelCard):
            logger.error("model %s is not served: %s", offer.name, offer.failure)
            left.append(model)
    return left


async def offer_later(frontend: PoolFrontend, left: Sequence[PreparedModel], pause_s: float = TEXT_RETRY_S) -> None:
    """Try those that are left again until none is."""
    waiting = list(left)
    while waiting:
        await asyncio.sleep(pause_s)
        for model in tuple(waiting):
            offer = await asyncio.to_thread(_offer, model)
            frontend.offer(offer)
            if isinstance(offer, ServedModel):
                logger.info("model %s is served", model.spec.name)
                waiting.remove(model)


def _offer(model: PreparedModel) -> ServedModel | ModelCard:
    """The model, or what there is to say of it: a tokenizer is anybody's, and one must not end the others."""
    try:
        return ServedModel.of(model)
    except TokenizerError as error:
        return model_card(model, failure=str(error))
    except Exception as error:
        logger.debug("the tokenizer of model %s cannot be loaded", model.spec.name, exc_info=True)
        return model_card(model, failure=f"its tokenizer cannot be loaded: {type(error).__name__}: {error}")


async def _follow(channel: BlockingChannel, frontend: PoolFrontend, stop: asyncio.Event) -> None:
    """Keep the frontend connected to the nodes that the supervisor tells of, also while what is under way may end;
    ``stop`` is set when this process is to end."""
    inbox: asyncio.Queue[object] = asyncio.Queue()
    receive = partial(_receive, channel, asyncio.get_running_loop(), inbox)
    threading.Thread(target=receive, name="supervisor", daemon=True).start()
    connections: dict[str, asyncio.Task[None]] = {}
    try:
        while (message := await inbox.get()) is not None:
            if not isinstance(message, NodeUp):
                stop.set()
                continue
            if message.node_id in connections:
                connections[message.node_id].cancel()
            address = pickle.loads(message.address)
            connections[message.node_id] = asyncio.create_task(_keep_connected(frontend, address))
    finally:
        stop.set()  # the supervisor has ended
        for task in connections.values():
            task.cancel()


def _receive(channel: BlockingChannel, loop: asyncio.AbstractEventLoop, inbox: asyncio.Queue[object]) -> None:
    while True:
        message = channel.receive()
        with contextlib.suppress(RuntimeError):  # the loop has ended, and the process is about to
            loop.call_soon_threadsafe(inbox.put_nowait, message)
        if message is None:
            return


async def _keep_connected(frontend: PoolFrontend, node: NodeAddress) -> None:
    while True:
        if not frontend.connected(node.node_id):
            try:
                await _connect(frontend, node)
            except (OSError, EOFError, FdExchangeError) as error:
                logger.debug("node %s: %s", node.node_id, error)
        await asyncio.sleep(_CONNECT_POLL_S)


async def _connect(frontend: PoolFrontend, node: NodeAddress) -> None:
    if node.local is not None:
        frontend.connect(node.node_id, node.local)
    elif node.remote is not None:
        await frontend.connect_remote(node.node_id, node.remote)


async def _beat(channel: BlockingChannel) -> None:
    """Beats on the loop, so that one that hangs is noticed."""
    while True:
        channel.send(Beat())
        await asyncio.sleep(BEAT_S)


def _routers(config: PoolConfig, models: Sequence[PreparedModel]) -> Callable[[int], Router | None]:
    specs, host_bytes = [model.spec for model in models], config.weight_cache_bytes
    assert host_bytes is not None, "nodes were started, so the configuration leaves no size open"
    return lambda nodes: make_router(config.policy, specs, nodes, host_bytes)


def _server_options(frontend: PoolFrontend, config: PoolConfig) -> ServerOptions:
    now_s = MonotonicClock().now_s
    names = [card.name for card in frontend.models()]
    registry = CollectorRegistry()
    registry.register(NodeCollector(frontend.node_states))
    return ServerOptions(
        api_keys=config.api_keys,
        metrics_keys=config.metrics_keys,
        cors_origins=config.cors_origins,
        limits=RequestLimits(
            max_body_bytes=config.max_body_bytes,
            max_stop_strings=config.max_stop_strings,
            max_stop_chars=config.max_stop_chars,
        ),
        registry=registry,
        now_s=now_s,
        state=lambda: pool_state(now_s(), frontend.node_states(), names),
    )


def _connection_limits(config: PoolConfig) -> ConnectionLimits:
    return ConnectionLimits(
        max_connections=config.max_connections,
        max_header_bytes=config.max_header_bytes,
        request_timeout_s=config.request_timeout_s,
        keep_alive_s=config.keep_alive_s,
        send_timeout_s=config.send_timeout_s,
    )


async def _report_ready(frontend: PoolFrontend, config: PoolConfig, channel: BlockingChannel, url: str) -> None:
    """Say so once every instance is up (or, after a while, once requests can be served at all)."""
    device, threads = config.device, config.threads_per_instance or 1
    deadline_s = time.monotonic() + _READY_TIMEOUT_S
    told: set[str] = set()
    while True:
        states = [instance for _, state in frontend.node_states() for instance in state.instances]
        for instance in states:
            if instance.alive and instance.instance_id not in told:
                told.add(instance.instance_id)
                started = InstanceStarted(instance.instance_id, instance.role, instance.pid, device, threads)
                channel.send(Said(started))
        complete = bool(states) and len(frontend.node_states()) >= config.nodes
        everyone = complete and all(instance.alive for instance in states)
        if everyone or (frontend.health().ready and time.monotonic() > deadline_s):
            channel.send(Said(Ready(url)))
            return
        await asyncio.sleep(_READY_POLL_S)
