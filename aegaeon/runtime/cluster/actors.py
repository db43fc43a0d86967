"""The only ``ray.remote``: drivers, where they are placed, and the news of their death.

Ray starts a driver actor on each node, and that one's fork server the instances; after that, messages go through shared
memory (``link``) and Ray is asked nothing until something ends.
"""

from __future__ import annotations

import contextlib
import logging
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
from aegaeon.runtime.cluster import inspector
from aegaeon.runtime.cluster.last_line import last_line
from aegaeon.runtime.frontend.gateway import Endpoint, Gateway
from aegaeon.runtime.instance.worker_options import WorkerOptions
from aegaeon.runtime.node.estate import Estate
from aegaeon.runtime.node.node import Ended, Node, NodeOptions
from aegaeon.runtime.process.fork_server import ForkServer
from aegaeon.runtime.process.forked_process import Call, ForkedProcess, ProcessDiedError
from aegaeon.runtime.process.process import ProcessId, die_with_parent
from aegaeon.runtime.process.process_log import LogPlace, begin_process_log
from aegaeon.runtime.process.reaper import Reaper
from aegaeon.runtime.wire.clock import MonotonicClock
from aegaeon.runtime.wire.fd_exchange import FdExchangeError

logger = logging.getLogger(__name__)

_WORKER = "aegaeon.runtime.instance.worker"
# A driver actor is asked to stop while it runs.
_ACTOR_CALLS = 4
# A killed process is gone at once, unless the kernel still frees gigabytes of it.
_GONE_S = 30.0


@dataclass(frozen=True, slots=True)
class Beat:
    """A driver lives: its process, and the one that ends when its instances have.

    ``complete``: all its instances are up.
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
        self._reaper = Reaper()
        self._forks = ForkServer(f"{name}-forks", logs, (_WORKER, *inspector.MODULES), self._reaper.watch)
        self._inspector = inspector.Inspector(name, logs, self._forks)
        self._node: Node | None = None
        self._gateway: Gateway | None = None
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._estate: Estate | None = None
        self._taken = threading.Event()

    def alive(self) -> None:
        """Returns at once, whatever else it is asked: it has imported everything, and is not stuck."""

    def prepare(self, configs: Sequence[ModelConfig], block_tokens: int, cache_dir: Path | None) -> Findings:
        """Inspect and convert models on this node."""
        return self._inspector.prepare(configs, block_tokens, cache_dir)

    def stand_by(self, estate_address: str | None) -> None:
        """Be ready to take over, with what the present driver has at this address.

        Returns when it is time: whoever waits for this hears when this process dies before.
        """
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
        if self._node is None or not self._node.beat(within_s):
            return None
        return Beat(*self.identity(), complete=self._node.complete)

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
        if self._gateway is not None:
            self._gateway.close()
        for thread in self._threads:
            thread.join(timeout=10.0)
        self._forks.close()
        self._reaper.close()

    def stop(self) -> None:
        if self._node is not None:
            self._node.stop()

    def _spawn(self, options: WorkerOptions, ended: Ended) -> None:
        instance = self._forks.start(Call(options.spec.instance_id, self._logs, _WORKER, "run_instance", (options,)))
        self._in_thread(f"watch-{options.key}", self._watch, instance, options, ended)

    def _watch(self, instance: ForkedProcess, options: WorkerOptions, ended: Ended) -> None:
        """Wait for the end of an instance."""
        try:
            with contextlib.closing(instance):
                self._reaper.watch(instance.pid())
                instance.result()
        except ProcessDiedError as error:
            reason = str(error)
        except Exception as error:  # noqa: BLE001 -- whatever an instance dies of
            reason = f"{type(error).__name__}: {last_line(error)}"
        else:
            reason = "it ended"
        ended(reason)

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
