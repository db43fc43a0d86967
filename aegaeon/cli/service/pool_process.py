"""The pool of a service: Ray, drivers, instances. A process of its own, which outlives the HTTP server's."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import queue
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from aegaeon.cli.service.channel import BeginPool, BlockingChannel, ModelsReady, NodeUp, Said
from aegaeon.cli.service.child_main import beat_from_thread
from aegaeon.core.config import PoolConfig
from aegaeon.core.service import ModelFound, ModelRefused, ServiceDiedError, ServiceError
from aegaeon.engine.prepared.prepared_model import PreparedModel, RefusedModel
from aegaeon.runtime.cluster.cluster import Cluster
from aegaeon.runtime.cluster.ray_start import wait_until_ray_ends
from aegaeon.runtime.node.node import NodeOptions
from aegaeon.runtime.process.run_folder import RunFolder

logger = logging.getLogger(__name__)

_WITHOUT_RAY = 4  # the exit code of a pool that has lost its Ray


def run(channel: BlockingChannel, begin: BeginPool) -> None:
    """Run the pool until the supervisor says so, or no node has a driver any more (``ServiceDiedError``)."""
    with Path(os.devnull).open("w") as nowhere, contextlib.ExitStack() as stack:
        if begin.config.ray_address is None:
            # Ray tells there of each process that ends, also of those that were to end; what matters is in our own log.
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        _run(channel, begin)


def _run(channel: BlockingChannel, begin: BeginPool) -> None:
    endings: queue.Queue[str] = queue.Queue()
    stopping = threading.Event()
    _background(lambda: _listen(channel, endings))
    beat_from_thread(channel)
    cluster = Cluster(begin.config, RunFolder(begin.folder), begin.logs)
    try:
        # Ray is started by the main thread: its processes end with the thread that started them.
        _start(begin, cluster, channel, stopping)
        _background(lambda: endings.put(cluster.wait_until_dead()))
        reason = endings.get()
    finally:
        stopping.set()
        cluster.stop()
    if reason:
        raise ServiceDiedError(f"no driver is left: {reason}")


def _end_without_ray(stopping: threading.Event) -> None:
    """Whoever asks Ray anything waits for ever then: this process ends as it is, and is replaced."""
    reason = wait_until_ray_ends()
    if not stopping.is_set():
        logger.error("%s: the pool is started anew", reason)
        os._exit(_WITHOUT_RAY)


def _background(work: Callable[[], None]) -> None:
    threading.Thread(target=work, daemon=True).start()


def _listen(channel: BlockingChannel, endings: queue.Queue[str]) -> None:
    channel.receive()  # there is but one thing to be told: to stop
    endings.put("")


def _start(begin: BeginPool, cluster: Cluster, channel: BlockingChannel, stopping: threading.Event) -> None:
    """Start every node with the models that can be served."""
    config = begin.config
    cluster.start(lambda address: channel.send(NodeUp(address.node_id, pickle.dumps(address))))
    if config.ray_address is None:
        _background(lambda: _end_without_ray(stopping))
    models = _find(config, cluster, channel) if begin.models is None else pickle.loads(begin.models)
    cluster.serve(lambda node_id: _node_options(config, node_id), models)


def _find(config: PoolConfig, cluster: Cluster, channel: BlockingChannel) -> list[PreparedModel]:
    """Look at the models, and say what they are. Raises ``ServiceError`` where none can be served."""
    good, refused = cluster.prepare()
    for model in good:
        channel.send(Said(_found(model)))
    for bad in refused:
        channel.send(Said(ModelRefused(bad.config.name, bad.config.path, bad.reason)))
    if not good:
        raise ServiceError(_nothing_to_serve(refused))
    channel.send(ModelsReady(pickle.dumps(good)))
    return good


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
