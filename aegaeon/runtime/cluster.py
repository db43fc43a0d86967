"""Ray's part of a service: start or join a cluster, a driver on each node, and end it without leaving anything."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from aegaeon.core.config import PoolConfig
from aegaeon.core.service import ServiceError
from aegaeon.runtime.actors import DriverActor, start_actor
from aegaeon.runtime.gateway import Endpoint
from aegaeon.runtime.node import NodeOptions
from aegaeon.runtime.prepare import PreparedModel, RefusedModel
from aegaeon.runtime.process_log import LogPlace
from aegaeon.runtime.ray_start import join_ray, start_private_ray
from aegaeon.runtime.run_folder import RunFolder


@dataclass(frozen=True, slots=True)
class RayNode:
    """A node of the cluster that the pool uses."""

    node_id: str
    ray_id: str
    host: str
    local: bool


class Cluster:
    """The Ray side of one service."""

    def __init__(self, config: PoolConfig, folder: RunFolder, logs: LogPlace) -> None:
        self._config = config
        self._folder = folder
        self._logs = logs
        self._drivers: list[Any] = []
        self._runs: list[Any] = []
        self.nodes: list[RayNode] = []

    def start(self) -> None:
        """Start Ray here, or join the cluster at ``ray_address``; then a driver actor per node."""
        if self._config.ray_address is None:
            start_private_ray(self._folder)
        else:
            join_ray(self._config.ray_address)
        self.nodes = _choose_nodes(_ray_nodes(), self._config.nodes)
        self._drivers = [
            start_actor(DriverActor, node.ray_id, f"{node.node_id}-driver", self._logs) for node in self.nodes
        ]

    def prepare(self, cache_dir: Path | None) -> tuple[list[PreparedModel], list[RefusedModel]]:
        """Inspect the models on every node; the first node's findings count."""
        config = self._config
        calls = [driver.prepare.remote(config.models, config.block_tokens, cache_dir) for driver in self._drivers]
        found: Sequence[tuple[list[PreparedModel], list[RefusedModel]]] = ray.get(calls)
        return found[0]

    def serve(self, options: Sequence[NodeOptions], models: Sequence[PreparedModel]) -> list[str]:
        """Start every node's instances; the addresses of the drivers."""
        calls = [driver.start.remote(own, models) for driver, own in zip(self._drivers, options, strict=True)]
        try:
            addresses: list[str] = ray.get(calls)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, ServiceError):
                raise ServiceError(str(error.cause)) from error
            raise
        self._runs = [driver.run.remote() for driver in self._drivers]
        return addresses

    def gateway(self, index: int) -> Endpoint:
        """Open the way in to a node that is not this one."""
        endpoint: Endpoint = ray.get(self._drivers[index].open_gateway.remote(self.nodes[index].host))
        return endpoint

    def wait_until_dead(self) -> str:
        """Blocks until a driver ends unasked; says why."""
        done, _ = ray.wait(self._runs, num_returns=1)
        try:
            ray.get(done[0])
        except ray.exceptions.RayError as error:
            return str(error).strip().splitlines()[-1]
        return ""

    def stop(self) -> None:
        """Shut everything down; idempotent."""
        if ray.is_initialized():
            try:
                ray.get([driver.stop.remote() for driver in self._drivers], timeout=10.0)
                ray.get(self._runs, timeout=10.0)
            except ray.exceptions.RayError as error:
                logging.getLogger(__name__).warning("a driver did not end in an orderly way: %s", error)
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
