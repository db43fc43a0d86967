"""Ray's part of a service: start or join a cluster, a driver on each node, and end it without leaving anything."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import ray

from aegaeon.core.config import PoolConfig
from aegaeon.core.service import ServiceError
from aegaeon.engine.prepared.prepared_model import Findings, PreparedModel
from aegaeon.runtime.cluster.driver_keeper import DriverKeeper, NodeAddress, RayNode
from aegaeon.runtime.cluster.ray_start import join_ray, start_private_ray
from aegaeon.runtime.node.node import NodeOptions
from aegaeon.runtime.process.process_log import LogPlace
from aegaeon.runtime.process.run_folder import RunFolder

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")


class Cluster:
    """The Ray side of one service."""

    def __init__(self, config: PoolConfig, folder: RunFolder, logs: LogPlace) -> None:
        self._config = config
        self._folder = folder
        self._logs = logs
        self._keepers: list[DriverKeeper] = []
        self._threads: list[threading.Thread] = []
        self._given_up: queue.Queue[str] = queue.Queue()

    def start(self, announce: Callable[[NodeAddress], None]) -> None:
        """Start Ray here, or join the cluster at ``ray_address``; then a driver actor per node.

        ``announce(address)`` is called, on any thread, whenever a node's driver is up: after ``serve``, and again when
        it had to be replaced.
        """
        if self._config.ray_address is None:
            start_private_ray(self._folder)
        else:
            join_ray(self._config.ray_address)
        nodes = _choose_nodes(_ray_nodes(), self._config.nodes)
        self._keepers = [DriverKeeper(node, self._logs, announce) for node in nodes]

    def prepare(self) -> Findings:
        """Inspect the models on every node; the first node's findings count."""
        found = self._everywhere(lambda keeper: keeper.prepare(self._config))
        return found[0]

    def serve(self, options: Callable[[str], NodeOptions], models: Sequence[PreparedModel]) -> None:
        """Start every node's instances, given its options by its id; from then on their drivers are kept running."""
        self._everywhere(lambda keeper: keeper.start(options(keeper.node.node_id), models))
        self._threads = [
            threading.Thread(target=self._keep, args=(keeper,), name=f"keep-{keeper.node.node_id}", daemon=True)
            for keeper in self._keepers
        ]
        for thread in self._threads:
            thread.start()

    def _everywhere(self, act: Callable[[DriverKeeper], _Result]) -> list[_Result]:
        with ThreadPoolExecutor(max(1, len(self._keepers))) as pool:
            return list(pool.map(act, self._keepers))

    def _keep(self, keeper: DriverKeeper) -> None:
        try:
            reason = keeper.keep()
        except Exception as error:  # Ray's own death is told in many ways, and whoever waits must hear of it
            logger.exception("the driver of node %s can be kept no longer", keeper.node.node_id)
            reason = f"node {keeper.node.node_id}: {type(error).__name__}: {error}"
        if reason:
            logger.error("%s; it is given up", reason)
        self._given_up.put(reason)

    def wait_until_dead(self) -> str:
        """Blocks until no node has a driver any more, nor will have; says why, or nothing after ``stop``."""
        reasons = [self._given_up.get() for _ in self._keepers]
        return "; ".join(filter(None, reasons))

    def stop(self) -> None:
        """Shut everything down; idempotent."""
        if ray.is_initialized():
            self._everywhere(DriverKeeper.stop)
            for thread in self._threads:
                thread.join(timeout=10.0)
            ray.shutdown()


def _ray_nodes() -> list[dict[str, Any]]:
    nodes: Any = ray.nodes  # untyped
    return list(nodes())


def _choose_nodes(found: Sequence[dict[str, Any]], count: int) -> list[RayNode]:
    """Nodes with the resources node_0, node_1, ... where there are such, else any, in a fixed order."""
    alive = sorted((node for node in found if node["Alive"]), key=lambda node: str(node["NodeID"]))
    if len(alive) < count:
        raise ServiceError(f"the Ray cluster has {len(alive)} nodes, {count} were asked for: lower --nodes")
    by_name = {name: node for node in alive for name in node["Resources"] if name.startswith("node_")}
    named = [by_name.get(f"node_{index}") for index in range(count)]
    chosen = [node for node in named if node is not None] if all(named) else alive[:count]
    here = ray.get_runtime_context().get_node_id()
    return [
        RayNode(f"node{index}", str(node["NodeID"]), str(node["NodeManagerAddress"]), node["NodeID"] == here)
        for index, node in enumerate(chosen)
    ]
