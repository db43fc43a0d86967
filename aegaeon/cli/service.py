"""Compose a whole service: Ray, nodes, frontend, HTTP server; from start to an end that leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import time
from collections.abc import Callable, Sequence

from aegaeon.core.config import PoolConfig
from aegaeon.core.service import (
    InstanceStarted,
    ListeningOn,
    ModelFound,
    ModelRefused,
    Ready,
    ServiceError,
    ServiceReport,
    Stopping,
)
from aegaeon.runtime.admin import pool_state
from aegaeon.runtime.clock import MonotonicClock
from aegaeon.runtime.cluster import Cluster
from aegaeon.runtime.frontend import PoolFrontend, ServedModel
from aegaeon.runtime.node import NodeOptions
from aegaeon.runtime.prepare import PreparedModel, RefusedModel
from aegaeon.runtime.process_log import LogPlace
from aegaeon.runtime.run_folder import RunFolder
from aegaeon.runtime.text import TokenizerError
from aegaeon.scheduler.registry import make_router
from aegaeon.scheduler.router import Router
from aegaeon.server.app import ServerOptions, create_app
from aegaeon.server.limits import ConnectionLimits, RequestLimits
from aegaeon.server.serve import AddressError, bind, serve

logger = logging.getLogger(__name__)

Report = Callable[[ServiceReport], None]

_READY_TIMEOUT_S = 120.0


def run_service(config: PoolConfig, report: Report, folder: RunFolder, logs: LogPlace) -> None:
    """Serve until SIGINT or SIGTERM. ``config`` is settled: no size is left to guess. ``logs``: of its processes.

    Raises ``ServiceError`` when the service cannot start or go on.
    """
    with _listen(config) as sock:
        report(ListeningOn(_url(sock)))
        cluster = Cluster(config, folder, logs)
        try:
            asyncio.run(_run(config, report, cluster, sock))
        finally:
            report(Stopping())
            cluster.stop()


def _listen(config: PoolConfig) -> socket.socket:
    try:
        return bind(config.host, config.port)
    except AddressError as error:
        raise ServiceError(str(error)) from error


def _url(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def _run(config: PoolConfig, report: Report, cluster: Cluster, sock: socket.socket) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    _on_signal(loop, stop.set)
    starting = asyncio.create_task(asyncio.to_thread(_start, config, report, cluster))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    models, addresses = await starting  # a start cannot be broken off half way; it takes seconds
    _on_signal(loop, stop.set)  # again: Ray puts its own handlers in place of ours
    if stop.is_set():
        return
    frontend = PoolFrontend({model.spec.name: model for model in models}, MonotonicClock(), _routers(config, models))
    try:
        for index, (node, address) in enumerate(zip(cluster.nodes, addresses, strict=True)):
            if node.local:
                frontend.connect(node.node_id, address)
            else:
                await frontend.connect_remote(node.node_id, await asyncio.to_thread(cluster.gateway, index))
        await _serve_until(stopping, frontend, config, report, cluster, sock)
    finally:
        frontend.close()


def _routers(config: PoolConfig, models: Sequence[ServedModel]) -> Callable[[int], Router | None]:
    specs, host_bytes = [model.spec for model in models], config.weight_cache_bytes
    assert host_bytes is not None, "nodes were started, so the configuration leaves no size open"
    return lambda nodes: make_router(config.policy, specs, nodes, host_bytes)


def _on_signal(loop: asyncio.AbstractEventLoop, act: Callable[[], None]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, act)


def _start(config: PoolConfig, report: Report, cluster: Cluster) -> tuple[list[ServedModel], list[str]]:
    """Blocking: processes start, models are looked at."""
    cluster.start()
    prepared, refused = cluster.prepare(config.cache_dir and config.cache_dir / "images")
    served, good = [], []
    for model in prepared:
        try:
            served.append(ServedModel.of(model))
        except TokenizerError as error:
            refused.append(RefusedModel(model.config, str(error)))
        else:
            text = served[-1].text
            good.append(model.with_tokenizer(text.eos_token_id, text.notes))
            report(_found(good[-1]))
    for bad in refused:
        report(ModelRefused(bad.config.name, bad.config.path, bad.reason))
    if not good:
        raise ServiceError(_nothing_to_serve(refused))
    return served, cluster.serve([_node_options(config, node.node_id) for node in cluster.nodes], good)


def _nothing_to_serve(refused: Sequence[RefusedModel]) -> str:
    reasons = "; ".join(f"{bad.config.name}: {bad.reason}" for bad in refused)
    return f"none of the models can be served: {reasons}"


def _node_options(config: PoolConfig, node_id: str) -> NodeOptions:
    if config.kv_cache_bytes is None or config.weight_cache_bytes is None or config.threads_per_instance is None:
        raise ServiceError("the configuration leaves sizes open: fit it to the machine first")
    return NodeOptions(config, node_id, config.kv_cache_bytes, config.weight_cache_bytes, config.threads_per_instance)


def _found(model: PreparedModel) -> ModelFound:
    facts = model.facts
    return ModelFound(
        model.spec.name,
        facts.architecture,
        facts.parameters,
        model.spec.weight_bytes,
        facts.dtype,
        model.spec.kv_shape.token_bytes,
        model.spec.max_context_tokens,
        model.note,
    )


async def _serve_until(
    stopping: asyncio.Task[bool],
    frontend: PoolFrontend,
    config: PoolConfig,
    report: Report,
    cluster: Cluster,
    sock: socket.socket,
) -> None:
    app = create_app(frontend, _server_options(frontend, config))
    serving = asyncio.create_task(serve(app, sock, on_started=lambda: None, limits=_connection_limits(config)))
    ready = asyncio.create_task(_report_ready(frontend, config, report, _url(sock)))
    dead = asyncio.create_task(asyncio.to_thread(cluster.wait_until_dead))
    done, _ = await asyncio.wait({stopping, serving, dead}, return_when=asyncio.FIRST_COMPLETED)
    ready.cancel()
    serving.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await serving
    if dead in done:
        raise ServiceError(f"a driver process ended: {dead.result() or 'no reason given'}; see the log")
    # The thread that waits for the drivers ends with them.
    await asyncio.to_thread(cluster.stop)


def _server_options(frontend: PoolFrontend, config: PoolConfig) -> ServerOptions:
    now_s = MonotonicClock().now_s
    names = [card.name for card in frontend.models()]
    return ServerOptions(
        api_keys=config.api_keys,
        metrics_keys=config.metrics_keys,
        cors_origins=config.cors_origins,
        limits=RequestLimits(
            max_body_bytes=config.max_body_bytes,
            max_stop_strings=config.max_stop_strings,
            max_stop_chars=config.max_stop_chars,
        ),
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


async def _report_ready(frontend: PoolFrontend, config: PoolConfig, report: Report, url: str) -> None:
    """Say so once every instance is up (or, after a while, once requests can be served at all)."""
    device, threads = config.device, config.threads_per_instance or 1
    deadline_s = time.monotonic() + _READY_TIMEOUT_S
    told: set[str] = set()
    while True:
        states = [instance for _, state in frontend.node_states() for instance in state.instances]
        for instance in states:
            if instance.alive and instance.instance_id not in told:
                told.add(instance.instance_id)
                report(InstanceStarted(instance.instance_id, instance.role, instance.pid, device, threads))
        everyone = bool(states) and all(instance.alive for instance in states)
        if everyone or (frontend.health().ready and time.monotonic() > deadline_s):
            report(Ready(url))
            return
        await asyncio.sleep(0.05)
