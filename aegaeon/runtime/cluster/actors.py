"""The only ``ray.remote``: processes, where they are placed, and the news of their death.

Ray starts a driver actor on each node and an instance actor per device group; after that, messages go through shared
memory (``link``) and Ray is asked nothing until something ends.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from aegaeon.core.config import ModelConfig
from aegaeon.core.service import ServiceError
from aegaeon.descriptors import raise_limit
from aegaeon.engine.prepared.prepared_model import Findings, PreparedModel
from aegaeon.runtime.cluster.inspector import Inspector
from aegaeon.runtime.cluster.last_line import last_line
from aegaeon.runtime.frontend.gateway import Endpoint, Gateway
from aegaeon.runtime.instance.worker_options import WorkerOptions
from aegaeon.runtime.node.estate import Estate
from aegaeon.runtime.node.node import Ended, Node, NodeOptions
from aegaeon.runtime.process.process import ProcessId, die_with_parent
from aegaeon.runtime.process.process_log import LogPlace, begin_process_log
from aegaeon.runtime.process.reaper import Reaper
from aegaeon.runtime.recovery.spares import Spares
from aegaeon.runtime.wire.clock import MonotonicClock
from aegaeon.runtime.wire.fd_exchange import FdExchangeError

logger = logging.getLogger(__name__)

# A driver actor is asked to stop while it runs.
_ACTOR_CALLS = 4
# A killed process is gone at once, unless the kernel still frees gigabytes of it.
_GONE_S = 30.0


class InstanceActor:
    """An instance process: what it runs, and torch with it, is imported there only."""

    def __init__(self) -> None:
        die_with_parent()  # Ray's node: when that is killed nobody else may be left to end this process
        from aegaeon.runtime.instance.worker import run_worker

        self._run_worker = run_worker
        self._taken = threading.Event()

    def pid(self) -> int:
        """Returns once the process has imported everything."""
        return os.getpid()

    def wait(self) -> None:
        """Returns when ``run`` is called: whoever waits for this hears when a spare dies."""
        self._taken.wait()

    def run(self, options: WorkerOptions, logs: LogPlace) -> None:
        """Returns when the driver has shut the instance down; raises what the instance died of."""
        self._taken.set()
        raise_limit()  # those that joined a running Ray have that one's
        begin_process_log(options.spec.instance_id, logs)
        try:
            self._run_worker(options)
        except FdExchangeError as error:  # its driver is dead or stuck; whoever watches that one tells of it
            logger.error("this instance ends: %s", error)
            raise
        except BaseException:
            logger.exception("this instance ends")
            raise


@dataclass(frozen=True, slots=True)
class Beat:
    """A driver lives: its process, and the one that ends when its instances have.

    ``complete``: all its instances are up, and all its spares are there or on their way.
    """

    driver: ProcessId
    reaper: ProcessId
    complete: bool


class DriverActor:
    """A driver process: its node's scheduler, ledger and caches."""

    def __init__(self, name: str, logs: LogPlace) -> None:
        die_with_parent()
        raise_limit()
        begin_process_log(name, logs)
        self._logs = logs
        self._inspector = Inspector(name, logs)
        self._reaper = Reaper()
        self._node: Node | None = None
        self._gateway: Gateway | None = None
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._spares: Spares[Any] | None = None
        self._estate: Estate | None = None
        self._taken = threading.Event()

    def alive(self) -> None:
        """Returns at once, whatever else it is asked: it has imported everything, and is not stuck."""

    def prepare(self, configs: Sequence[ModelConfig], block_tokens: int, cache_dir: Path | None) -> Findings:
        """Inspect and convert models on this node."""
        return self._inspector.prepare(configs, block_tokens, cache_dir)

    def stand_by(self, estate_address: str | None, spares: int) -> None:
        """Be ready to take over, with processes for instances, and with what the present driver has at this address.

        Returns when it is time: whoever waits for this hears when this process dies before.
        """
        self._make_spares(max(1, spares)).fill()
        self._fetch_estate(estate_address)
        self._taken.wait()

    def _fetch_estate(self, address: str | None) -> None:
        if address is not None:
            try:
                self._estate = Estate.fetch(address)
            except FdExchangeError as error:  # who has it is dead
                logger.warning("nothing of the driver before this one can be had: %s", error)

    def start(self, options: NodeOptions, models: Sequence[PreparedModel], estate_address: str | None = None) -> str:
        """Take the memory and start the instances; returns the address of the node's descriptors.

        ``estate_address``: where what the driver before this one has left is to be had.
        """
        self._taken.set()
        self._fetch_estate(estate_address)
        spares = options.config.spare_processes or 0
        self._make_spares(spares).keep(spares)  # one that stood by has one in any case
        with self._inheritance() as estate:
            self._node = Node(options, models, self._spawn, self._inspector.needs_image, estate)
        self._node.start()
        return self._node.address

    @contextmanager
    def _inheritance(self) -> Iterator[Estate | None]:
        """What the driver before this one has left; the memory lives on in whoever has taken it over meanwhile."""
        estate, self._estate = self._estate, None
        try:
            yield estate
        finally:
            if estate is not None:
                logger.info("this driver goes on with the KV and the weights that the one before it has left")
                estate.close()

    def _make_spares(self, count: int) -> Spares[Any]:
        with self._lock:
            if self._spares is None:
                self._spares = Spares(count, self._start_process)
            return self._spares

    def identity(self) -> tuple[ProcessId, ProcessId]:
        """This process, and the one that ends when its instances have."""
        return ProcessId.own(), self._reaper.process

    def supersede(self, before: tuple[ProcessId, ProcessId]) -> None:
        """Make sure that the node's driver before this one has ended, and its instances: what they had is free then."""
        driver, reaper = before
        if not (driver.kill(_GONE_S) and reaper.wait(_GONE_S)):
            raise ServiceError(f"process {driver.pid} cannot be killed")

    def beat(self, within_s: float) -> Beat | None:
        """Who it is and how it is, if the driver's loop turns."""
        if self._node is None or self._spares is None or not self._node.beat(within_s):
            return None
        return Beat(*self.identity(), complete=self._node.complete and self._spares.complete)

    def open_gateway(self, host: str) -> Endpoint:
        """Let frontends of other nodes in, at ``host``."""
        assert self._node is not None, "start comes first"
        self._gateway = Gateway(self._node.node_id, self._node.address, host, MonotonicClock())
        return self._gateway.endpoint

    def run(self) -> None:
        """Drive until ``stop``; returns when every instance process has ended."""
        assert self._node is not None, "start comes first"
        try:
            self._node.run()
        except BaseException:
            logger.exception("this driver ends")
            raise
        for actor in self._spares.close() if self._spares is not None else ():
            ray.kill(actor)
        if self._gateway is not None:
            self._gateway.close()
        for thread in self._threads:
            thread.join(timeout=10.0)
        self._reaper.close()

    def stop(self) -> None:
        if self._node is not None:
            self._node.stop()

    def _spawn(self, options: WorkerOptions, ended: Ended) -> None:
        assert self._spares is not None, "start comes first"
        self._in_thread(f"watch-{options.key}", self._watch, self._spares.take(), self._spares, options, ended)

    def _watch(self, actor: Any, spares: Spares[Any], options: WorkerOptions, ended: Ended) -> None:
        """Run an instance and wait for its end; ``actor`` is held so that Ray does not end it early."""
        try:
            try:
                self._reaper.watch(ray.get(actor.pid.remote()))
                run = actor.run.remote(options, self._logs)
            finally:
                spares.up()
            ray.get(run)
        except (ray.exceptions.RayError, OSError) as error:
            reason = last_line(error)
        except Exception as error:
            logger.exception("instance %s cannot be watched", options.key)
            reason = f"{type(error).__name__}: {error}"
        else:
            reason = "it ended"
        try:
            ray.kill(actor)
        finally:
            ended(reason)

    def _start_process(self) -> Any:
        """Begin to start one; nobody says yet what it is for."""
        actor = start_actor(InstanceActor, ray.get_runtime_context().get_node_id())
        self._in_thread("watch-spare", self._watch_spare, actor)
        return actor

    def _watch_spare(self, actor: Any) -> None:
        """Until it becomes an instance."""
        try:
            self._reaper.watch(ray.get(actor.pid.remote()))
            ray.get(actor.wait.remote())
        except (ray.exceptions.RayError, OSError):
            if self._spares is not None:
                self._spares.lost(actor)

    def _in_thread(self, name: str, target: Callable[..., None], *args: object) -> None:
        """Its end is waited for when the driver ends; threads that have ended are let go."""
        thread = threading.Thread(target=target, args=args, name=name, daemon=True)
        thread.start()
        with self._lock:
            self._threads = [*(other for other in self._threads if other.is_alive()), thread]


def start_actor(cls: type, ray_node_id: str, *args: object) -> Any:
    """An actor of ``cls`` in a process of its own on a node. It takes no CPU of Ray's count: we place, not Ray."""
    strategy = NodeAffinitySchedulingStrategy(ray_node_id, soft=False)
    remote: Any = ray.remote  # its stubs do not know all of its own options
    return (
        remote(cls)
        .options(num_cpus=0, max_restarts=0, max_concurrency=_ACTOR_CALLS, scheduling_strategy=strategy)
        .remote(*args)
    )
